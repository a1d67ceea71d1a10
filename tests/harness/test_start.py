"""Where a search starts: the architecture that a pruner's scores would choose, within the budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aptp.core.architecture import harden
from aptp.core.budget import CostModel
from aptp.core.errors import RequestError
from aptp.core.pruner import PrunerContext
from aptp.harness.pruning import pruner_context
from aptp.harness.start import starting_point
from aptp.testing import tiny_pruner_context, tiny_space, tiny_unet


@pytest.fixture(scope="module")
def costs() -> CostModel:
    unet = tiny_unet()
    context: PrunerContext = tiny_pruner_context(unet, tiny_space(unet))
    return context.cost_model


def drawn(costs: CostModel, seed: int) -> torch.Tensor:
    return torch.rand(costs.space.num_gates, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log()


def open_gates(costs: CostModel, start: torch.Tensor) -> torch.Tensor:
    """What stays at a logit of zero, with every block."""
    return harden(costs.space, torch.where(costs.space.width_gates, start, 1.0), threshold=0.0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), target=st.floats(0.6, 0.98))
def test_zero_is_the_threshold_that_meets_the_budget(costs: CostModel, seed: int, target: float) -> None:
    start = starting_point(costs, drawn(costs, seed), target)
    assert float(costs.fraction(open_gates(costs, start))) == pytest.approx(target, abs=0.02)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), target=st.floats(0.05, 1.0))
def test_the_order_is_that_of_the_scores(costs: CostModel, seed: int, target: float) -> None:
    scores = drawn(costs, seed)
    start = starting_point(costs, scores, max(target, costs.floor))
    assert start.isfinite().all()
    assert torch.equal(start.argsort(), scores.argsort())


def test_a_budget_that_takes_blocks_leaves_width_something_to_lose(costs: CostModel) -> None:
    start = starting_point(costs, drawn(costs, 0), costs.floor)
    least = float(costs.fraction(harden(costs.space, (~costs.space.width_gates).double(), threshold=1.0)))
    assert costs.floor < least < float(costs.fraction(open_gates(costs, start)))


@pytest.mark.parametrize("router", ["constant", "kmeans", "contrastive"])
def test_codes_start_on_what_the_pruner_would_keep(open_work, router: str) -> None:
    settings = {"start": {"name": "magnitude"}, "steps": 5}
    work = open_work(search=settings, router=router, experts=1 if router == "constant" else 3, balancer="none")
    embeds = work.train.prompts().embeds
    logits = work.router.predictor(embeds * 0) if router == "contrastive" else work.router.code_logits
    scores = work.start.scores(pruner_context(work))
    kept = open_gates(work.cost_model, starting_point(work.cost_model, scores, work.config.budget.target)).bool()
    width = work.space.width_gates
    soft = work.router_context.relaxation.soft(logits.double())[0, width]
    opened, closed = soft[kept[width]], soft[~kept[width]]
    assert opened.mean() > 0.8
    assert closed.mean() < 0.2
    assert logits[0, ~width].abs().max() < 1, "blocks start level"


def test_a_search_can_start_from_nothing(open_work) -> None:
    work = open_work(search={"start": None}, router="constant", experts=1, balancer="none")
    assert torch.equal(work.router.code_logits, torch.zeros_like(work.router.code_logits))
    assert not work.path("checkpoints/start.safetensors").exists()


def test_a_resumed_run_starts_from_the_scores_it_kept(open_work) -> None:
    settings = {"start": {"name": "taylor", "batches": 1}, "batch": 4}
    first = open_work(search=settings).router.predictor.bias
    work = open_work(search=settings)
    work.start.scores = lambda context: pytest.fail("scored again")
    assert torch.equal(work.router.predictor.bias, first)


def test_a_run_that_searches_nothing_scores_nothing(open_work) -> None:
    work = open_work(pruner="random", router="constant", experts=1, balancer="none")
    assert work.router_context.start is None


def test_a_pruner_without_scores_is_refused(open_work) -> None:
    with pytest.raises(RequestError, match="scores no gates"):
        _ = open_work(search={"start": {"name": "obs"}}).start
