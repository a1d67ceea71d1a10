"""From scores to an architecture within the budget."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aptp.core.architecture import SearchSpace
from aptp.core.errors import RequestError
from aptp.core.pruner import TOLERANCE, PrunerContext, check_reach, keep_best
from aptp.plugins.denoisers.unet import UNetDenoiser
from aptp.testing import tiny_pruner_context, tiny_space, tiny_unet


@pytest.fixture(scope="module")
def asked() -> PrunerContext:
    unet = tiny_unet()
    return tiny_pruner_context(unet, tiny_space(unet))


def at(context: PrunerContext, target: float) -> PrunerContext:
    return dataclasses.replace(context, target=target)


def random_scores(context: PrunerContext, seed: int = 0) -> torch.Tensor:
    return torch.rand(context.space.num_gates, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("target", [0.9, 0.66, 0.4])
def test_comes_within_one_percent_where_units_are_small(asked: PrunerContext, target: float, seed: int) -> None:
    cost = asked.cost_model.fraction(keep_best(at(asked, target), random_scores(asked, seed)).gates)
    assert float(cost) == pytest.approx(target, rel=TOLERANCE)


@pytest.mark.parametrize("align", [8, 16])
@pytest.mark.parametrize("target", [0.9, 0.6])
def test_aligned_units_go_together(target: float, align: int) -> None:
    unet = tiny_unet()
    context = tiny_pruner_context(unet, tiny_space(unet, align), target)
    cost = float(context.cost_model.fraction(keep_best(context, random_scores(context)).gates))
    assert cost == pytest.approx(target, rel=0.05)


def test_a_unit_that_stays_keeps_those_it_goes_with() -> None:
    unet = tiny_unet()
    context = tiny_pruner_context(unet, tiny_space(unet, 8), 0.7)
    scores = random_scores(context)
    place = next(p for p, size in zip(context.space.slices, context.space.strides, strict=True) if size == 2)
    scores[place.start] = torch.inf
    best = int(scores[place.start + 1 : place.stop].argmax()) + place.start + 1
    kept = keep_best(context, scores).gates
    assert kept[place.start] == kept[best] == 1


def test_only_a_gate_that_overshoots_is_passed_over() -> None:
    """Of blocks alone: those below the last one that goes are gone, but for those that cost too much by then."""
    unet = tiny_unet()
    context = tiny_pruner_context(unet, SearchSpace(UNetDenoiser().anatomy(unet).blocks))
    passed_over = 0
    for seed in range(20):
        scores = random_scores(context, seed)
        gates = keep_best(context, scores).gates
        cost = float(context.cost_model.fraction(gates))
        kept, gone = scores[gates == 1], scores[gates == 0]
        passed_over += int(kept.min() < gone.max())
        for gate in ((scores < gone.max()) & (gates == 1)).nonzero().flatten().tolist():
            fewer = gates.clone()
            fewer[gate] = 0
            assert float(context.cost_model.fraction(fewer)) < context.target * (1 - TOLERANCE) <= cost
    assert 0 < passed_over < 20


def test_a_score_that_is_no_number_is_refused(asked: PrunerContext) -> None:
    scores = random_scores(asked)
    scores[-1] = torch.nan
    with pytest.raises(RequestError, match="not a number") as caught:
        keep_best(asked, scores)
    assert asked.space.sites[-1].path in str(caught.value)


def test_scores_count_by_their_order(asked: PrunerContext) -> None:
    scores = random_scores(asked)
    assert torch.equal(keep_best(asked, scores).gates, keep_best(asked, (scores * 9).exp() - 1e6).gates)


def test_infinite_scores_stay_and_bound_the_budget(asked: PrunerContext) -> None:
    scores = random_scores(asked)
    scores[~asked.space.width_gates] = torch.inf
    gates = keep_best(asked, scores).gates
    assert (gates[~asked.space.width_gates] == 1).all()
    least = asked.cost_model.floor * 1.01
    with pytest.raises(RequestError, match=r"floor of what this pruner drops.*0\.3\d\d of the dense MACs"):
        keep_best(at(asked, least), scores)
    check_reach(at(asked, least), torch.ones_like(asked.space.width_gates))


def test_a_budget_under_the_floor_is_refused(asked: PrunerContext) -> None:
    with pytest.raises(RequestError, match="under the floor of this search space"):
        keep_best(at(asked, asked.cost_model.floor / 2), random_scores(asked))
