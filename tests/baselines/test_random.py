"""Random pruning: by seed, within the budget."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aptp.api import cost_model, search_space
from aptp.baselines.random import RandomPruner
from aptp.core.errors import RequestError
from aptp.core.pruner import PrunerContext
from aptp.testing import check_pruner, tiny_unet


@pytest.fixture(scope="module")
def asked() -> PrunerContext:
    unet = tiny_unet("sd2")
    space = search_space(unet, "width-depth")
    return PrunerContext(unet, space, cost_model(unet, space, text_tokens=5), 0.66, 0, lambda: iter(()))


def prune(context: PrunerContext) -> torch.Tensor:
    return RandomPruner(RandomPruner.Options()).prune(context).architecture.gates


def test_conforms() -> None:
    check_pruner(RandomPruner(RandomPruner.Options()))


def test_the_seed_decides(asked: PrunerContext) -> None:
    assert torch.equal(prune(asked), prune(asked))
    assert not torch.equal(prune(asked), prune(dataclasses.replace(asked, seed=1)))


def test_meets_the_budget_and_favours_no_gate(asked: PrunerContext) -> None:
    drawn = torch.stack([prune(dataclasses.replace(asked, seed=seed)) for seed in range(40)])
    costs = asked.cost_model.fraction(drawn)
    assert (costs - 0.66).abs().mean() < 0.02
    shares = drawn.mean(0)
    assert 0.2 < shares.min() < shares.max() <= 1
    assert shares.std() < 0.15


def test_refuses_a_budget_under_the_floor(asked: PrunerContext) -> None:
    with pytest.raises(RequestError, match="under the floor"):
        prune(dataclasses.replace(asked, target=0.05))
