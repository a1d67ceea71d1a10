"""Unbalanced transport against POT's solver, between its two limits, and where exponentials overflow."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aptp.core.router import serve
from aptp.plugins.balancers.sinkhorn import SinkhornBalancer
from aptp.plugins.balancers.unbalanced import UnbalancedBalancer
from aptp.testing import check_balancer


def unbalanced(**options: float) -> UnbalancedBalancer:
    return UnbalancedBalancer(UnbalancedBalancer.Options(**options))


def scores_of(batch: int, experts: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, experts, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("strictness", [1e-3, 0.5, 50.0])
def test_conforms(strictness: float) -> None:
    check_balancer(unbalanced(strictness=strictness), relaxed=True)


@given(
    batch=st.integers(1, 40),
    experts=st.integers(1, 8),
    seed=st.integers(0, 999),
    strictness=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_plan_is_that_of_pot(batch: int, experts: int, seed: int, strictness: float) -> None:
    scores, generator = scores_of(batch, experts, seed), torch.Generator().manual_seed(seed)
    shares, weights = (torch.rand(n, generator=generator).double() + 0.2 for n in (experts, batch))
    shares, weights = shares / shares.sum(), weights / weights.sum()
    balancer = unbalanced(epsilon=0.2, strictness=strictness, tolerance=1e-10, iterations=10_000)
    plan = balancer.assign(scores, expert_marginals=shares, prompt_weights=weights).plan
    relaxation = (math.inf, strictness)
    expected = ot.sinkhorn_unbalanced(weights, shares, -scores, 0.2, relaxation, stopThr=1e-12, numItermax=10_000)
    torch.testing.assert_close(plan, expected, atol=1e-6, rtol=0)


def test_a_strict_one_is_sinkhorn_and_a_lax_one_takes_the_nearest() -> None:
    scores = scores_of(64, 4, scale=0.3)
    scores[:, 2] += 0.5
    balanced = SinkhornBalancer(SinkhornBalancer.Options(epsilon=0.2)).assign(scores).plan
    strict = unbalanced(epsilon=0.2, strictness=1e4, tolerance=1e-9, iterations=200_000).assign(scores)
    torch.testing.assert_close(strict.plan, balanced, atol=1e-4, rtol=0)
    assert torch.equal(unbalanced(strictness=1e-6).assign(scores).index, scores.argmax(1))


def test_the_stricter_the_nearer_to_the_shares() -> None:
    scores = scores_of(64, 4, scale=0.3)
    scores[:, 2] += 1
    shares = [unbalanced(strictness=rho).assign(scores).plan.sum(0) for rho in (0.01, 0.1, 1.0, 10.0)]
    distance = [float((share / 0.25).log().mul(share).sum()) for share in shares]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > 10 * distance[-1]


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_overflow(ratio: float, dtype: torch.dtype) -> None:
    scores = scores_of(16, 4, scale=ratio * 1e-3).to(dtype)
    answer = unbalanced(epsilon=1e-3).assign(scores)
    assert answer.plan.isfinite().all()
    torch.testing.assert_close(answer.plan.sum(1), torch.full((16,), 1 / 16, dtype=dtype), atol=1e-6, rtol=0)


def test_one_prompt_and_one_repeated_take_the_nearest_code() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.3]])
    for strictness in (0.01, 1.0, 1e3):
        assert unbalanced(strictness=strictness).assign(scores).index.tolist() == [1]
        assert unbalanced(strictness=strictness).assign(scores.repeat(6, 1)).index.tolist() == [1] * 6


def test_a_code_that_shall_get_nothing_gets_nothing() -> None:
    scores = scores_of(12, 3)
    answer = unbalanced(strictness=10.0).assign(scores, expert_marginals=torch.tensor([0.5, 0.0, 0.5]))
    assert answer.plan[:, 1].max() < 1e-9
    assert set(answer.index.tolist()) == {0, 2}


@given(batch=st.integers(2, 40), experts=st.integers(1, 6), seed=st.integers(0, 999))
def test_served_with_its_bias_the_prompts_go_where_the_plan_sends_them(batch: int, experts: int, seed: int) -> None:
    scores = scores_of(batch, experts, seed)
    served = serve(scores, unbalanced().serving_bias(scores))
    assert torch.equal(served, unbalanced().assign(scores).index)
