"""Sinkhorn against POT's other solvers, at the edges, and over two processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import ot
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aptp.core.router import serve
from aptp.plugins.balancers.sinkhorn import SinkhornBalancer
from aptp.testing import check_balancer


def sinkhorn(**options: float) -> SinkhornBalancer:
    return SinkhornBalancer(SinkhornBalancer.Options(**options))


def scores_of(batch: int, experts: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, experts, generator=generator, dtype=torch.float64)


def test_conforms() -> None:
    check_balancer(sinkhorn())


def test_plan_is_that_of_the_plain_algorithm() -> None:
    scores = scores_of(24, 5)
    rows, columns = torch.full((24,), 1 / 24).double(), torch.full((5,), 1 / 5).double()
    plain = ot.sinkhorn(rows, columns, -scores, 0.5, method="sinkhorn", stopThr=1e-9, warn=False)
    torch.testing.assert_close(sinkhorn(epsilon=0.5).assign(scores).plan, plain, atol=1e-6, rtol=0)


def test_small_epsilon_nears_the_exact_plan() -> None:
    scores = scores_of(20, 4)
    rows, columns = torch.full((20,), 1 / 20).double(), torch.full((4,), 1 / 4).double()
    exact = ot.emd(rows, columns, -scores)
    plan = sinkhorn(epsilon=0.02, iterations=5_000).assign(scores).plan
    assert float((plan * scores).sum()) == pytest.approx(float((exact * scores).sum()), abs=0.01)
    assert (plan.argmax(1) == exact.argmax(1)).double().mean() >= 0.9


@given(
    batch=st.integers(2, 40),
    experts=st.integers(1, 9),
    seed=st.integers(0, 999),
    tolerance=st.sampled_from([1e-3, 1e-6]),
)
def test_marginals_to_the_stated_tolerance(batch: int, experts: int, seed: int, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shares, weights = (torch.rand(n, generator=generator).double() + 0.2 for n in (experts, batch))
    balancer = sinkhorn(epsilon=0.2, tolerance=tolerance, iterations=100_000)
    plan = balancer.assign(scores_of(batch, experts, seed), expert_marginals=shares, prompt_weights=weights).plan
    torch.testing.assert_close(plan.sum(1), weights / weights.sum(), atol=1e-12, rtol=0)
    assert (plan.sum(0) - shares / shares.sum()).norm() <= tolerance


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_overflow(ratio: float, dtype: torch.dtype) -> None:
    answer = sinkhorn(epsilon=1e-3).assign(scores_of(16, 4, scale=ratio * 1e-3).to(dtype))
    assert answer.plan.isfinite().all()
    torch.testing.assert_close(answer.plan.sum(1), torch.full((16,), 1 / 16, dtype=dtype), atol=1e-6, rtol=0)
    assert len(answer.index.unique()) == 4


def test_one_prompt_and_one_repeated_take_the_nearest_code() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.3]])
    assert sinkhorn().assign(scores).index.tolist() == [1]
    assert sinkhorn().assign(scores.repeat(6, 1)).index.tolist() == [1] * 6


def test_one_expert() -> None:
    answer = sinkhorn().assign(scores_of(5, 1))
    assert answer.index.tolist() == [0] * 5
    torch.testing.assert_close(answer.plan, torch.full((5, 1), 0.2).double())


def test_a_popular_code_is_shared_out() -> None:
    scores = scores_of(64, 4, scale=0.2)
    scores[:, 2] += 5
    assert scores.argmax(1).unique().tolist() == [2]
    assert sinkhorn().assign(scores).index.bincount(minlength=4).min() >= 12


@given(
    batch=st.integers(8, 200), experts=st.integers(1, 8), seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1, 50])
)
def test_served_with_its_bias_prompts_go_where_the_plan_sends_them(
    batch: int, experts: int, seed: int, scale: float
) -> None:
    scores = scores_of(batch, experts, seed, scale)
    scores[:, 0] += 10 * scale
    served = serve(scores, sinkhorn().serving_bias(scores))
    plan = sinkhorn().assign(scores).plan
    elsewhere = plan.gather(1, served[:, None])[:, 0] < plan.max(1).values * (1 - 1e-4)
    if scale < 50:
        assert not elsewhere.any()
    else:  # the plan is exact: even, and at its borders as many prompts as it has prices are between two codes
        assert elsewhere.sum() < experts
        assert (served.bincount(minlength=experts) - batch / experts).abs().max() < experts


def _assign_half(rank: int, file: str, scores: Tensor, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    answer = sinkhorn().assign(scores.chunk(2)[rank])
    torch.save({"index": answer.index, "plan": answer.plan}, out / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_assign_as_one(tmp_path: Path) -> None:
    scores = scores_of(24, 4)
    scores[:12, 1] += 3  # halves that would be balanced otherwise if each were on its own
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "meeting"), scores, tmp_path)
    children = [context.Process(target=_assign_half, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = sinkhorn().assign(scores)
    assert torch.equal(torch.cat([half["index"] for half in halves]), whole.index)
    torch.testing.assert_close(torch.cat([half["plan"] for half in halves]), whole.plan, atol=1e-12, rtol=0)
    apart = torch.cat([sinkhorn().assign(half).index for half in scores.chunk(2)])
    assert not torch.equal(apart, whole.index)
