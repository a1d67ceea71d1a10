"""Uniform pruning: the same share everywhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aptp.baselines.magnitude import MagnitudePruner
from aptp.baselines.uniform import UniformPruner
from aptp.core.pruner import TOLERANCE, PrunerContext


def prune(context: PrunerContext, target: float, **options: str) -> torch.Tensor:
    asked = dataclasses.replace(context, target=target)
    return UniformPruner(UniformPruner.Options(**options)).prune(asked).architecture.gates


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "random"])
def test_every_width_site_keeps_the_same_share_up_to_a_unit(asked: PrunerContext, criterion: str) -> None:
    gates = prune(asked, 0.66, criterion=criterion)
    lowest, highest = 0.0, 1.0
    for site, place in zip(asked.space.sites, asked.space.slices, strict=True):
        kept = float(gates[place].sum())
        if site.is_block:
            assert kept == 1
        elif kept > 1:
            lowest, highest = max(lowest, (kept - 0.5) / site.units), min(highest, (kept + 0.5) / site.units)
    assert lowest <= highest + 1e-6, "no share rounds to what every site keeps"


def test_the_criterion_chooses_within_a_site(asked: PrunerContext) -> None:
    gates, sizes = prune(asked, 0.66), MagnitudePruner(MagnitudePruner.Options()).scores(asked)
    for site, place in zip(asked.space.sites, asked.space.slices, strict=True):
        kept = gates[place].bool()
        if not site.is_block and not kept.all():
            assert sizes[place][kept].min() >= sizes[place][~kept].max()
    assert not torch.equal(gates, prune(asked, 0.66, criterion="random"))


def test_blocks_go_when_nothing_else_is_left(asked: PrunerContext) -> None:
    gates = prune(asked, 0.3)
    width = asked.space.width_gates
    sites = [place for site, place in zip(asked.space.sites, asked.space.slices, strict=True) if not site.is_block]
    assert 0 < (gates[~width] == 0).sum() < (~width).sum()
    assert sum(int(gates[place].sum() == 1) for place in sites) >= len(sites) - 1
    sizes = MagnitudePruner(MagnitudePruner.Options()).scores(asked)
    kept, gone = (sizes[~width][gates[~width] == value] for value in (1, 0))
    assert gone.min() < kept.min(), "the least goes first"
    for gate in ((sizes < gone.max()) & ~width & (gates == 1)).nonzero().flatten().tolist():
        fewer = gates.clone()
        fewer[gate] = 0
        assert float(asked.cost_model.fraction(fewer)) < 0.3 * (1 - TOLERANCE), "it would have cost too much"
