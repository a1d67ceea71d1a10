"""Magnitude pruning keeps the largest, within the budget."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from aptp.api import cost_model, search_space
from aptp.baselines.magnitude import MagnitudePruner
from aptp.core.architecture import SearchSpace
from aptp.core.errors import RequestError
from aptp.core.pruner import PrunerContext
from aptp.testing import check_pruner, tiny_unet


def context(unet: nn.Module, granularity: str, target: float, budget: str = "macs") -> PrunerContext:
    space = search_space(unet, granularity)
    costs = cost_model(unet, space, budget, text_tokens=5)
    return PrunerContext(unet, space, costs, target, 0, lambda: iter(()))


def size(values: list[Tensor], norm: str) -> float:
    flat = torch.cat([value.double().flatten() for value in values])
    return float(flat.abs().mean() if norm == "l1" else flat.square().mean().sqrt())


def scores_by_hand(unet: nn.Module, space: SearchSpace, norm: str) -> list[float]:
    """Unit by unit, from the names of the layers."""
    weights = {name.removesuffix(".weight"): value for name, value in unet.state_dict().items() if value.ndim > 1}
    layers = {
        "resnet_channels": (("conv1", 0), ("conv2", 1), ("time_emb_proj", 0)),
        "attention_heads": (("to_q", 0), ("to_k", 0), ("to_v", 0), ("to_out.0", 1)),
        "feedforward_units": (("net.0.proj", 0), ("net.2", 1)),
    }
    scores, blocks = [], {}
    for site in space.sites:
        if site.is_block:
            inside = [value for name, value in weights.items() if name.startswith(f"{site.path}.")]
            blocks.setdefault("attentions" in site.path, []).append((len(scores), size(inside, norm)))
            scores.append(0.0)
            continue
        own = []
        for unit in range(site.units):
            of_layer = []
            for name, side in layers[site.kind]:
                weight = weights[f"{site.path}.{name}"]
                halves = weight.chunk(2) if name == "net.0.proj" else [weight]  # a GEGLU's values and gates
                of_layer.append(size([half.chunk(site.units, side)[unit] for half in halves], norm))
            own.append(sum(of_layer) / len(of_layer))
        scores += [score * site.units / sum(own) for score in own]
    for members in blocks.values():
        mean = sum(score for _, score in members) / len(members)
        for gate, score in members:
            scores[gate] = score / mean
    return scores


def test_conforms() -> None:
    check_pruner(MagnitudePruner(MagnitudePruner.Options()))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_keeps_the_gates_with_the_largest_scores(norm: str) -> None:
    unet = tiny_unet("sd2")
    asked = context(unet, "width-depth", 0.6)
    architecture = MagnitudePruner(MagnitudePruner.Options(norm=norm)).prune(asked).architecture
    scores = torch.tensor(scores_by_hand(unet, asked.space, norm), dtype=torch.float64)
    kept = architecture.gates.bool()
    alone = torch.zeros_like(kept)  # the last unit of a site stays, whatever its score
    for site, place in zip(asked.space.sites, asked.space.slices, strict=True):
        alone[place] = not site.is_block and kept[place].sum() == 1
    assert scores[kept & ~alone].min() > scores[~kept].max()
    assert 0.3 < kept.double().mean() < 0.9


@pytest.mark.parametrize(
    ("granularity", "budget"), itertools.product(["width", "depth", "width-depth"], ["macs", "params"])
)
def test_meets_the_budget(granularity: str, budget: str) -> None:
    unet = tiny_unet("sd2")
    base = context(unet, granularity, 1.0, budget)
    for target in (0.5, 0.66, 0.8, 1.0):
        if target < base.cost_model.floor:
            continue
        asked = context(unet, granularity, target, budget)
        gates = MagnitudePruner(MagnitudePruner.Options()).prune(asked).architecture.gates
        cost = float(asked.cost_model.fraction(gates))
        flipped = (gates - torch.eye(len(gates))).abs()  # each row: one gate the other way
        level = float((asked.cost_model.fraction(flipped) - cost).abs().max())
        assert abs(cost - target) <= max(0.01 * target, level / 2)


def test_refuses_a_budget_under_the_floor() -> None:
    with pytest.raises(RequestError, match="under the floor"):
        MagnitudePruner(MagnitudePruner.Options()).prune(context(tiny_unet("sd2"), "depth", 0.05))
