"""Magnitude pruning: scores as by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aptp.baselines.magnitude import MagnitudePruner
from aptp.core.architecture import SearchSpace
from aptp.core.pruner import keep_best
from aptp.testing import check_pruner, tiny_pruner_context, tiny_space, tiny_unet


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
def test_scores_are_those_by_hand(norm: str) -> None:
    unet = tiny_unet("sd2")
    asked = tiny_pruner_context(unet, tiny_space(unet))
    pruner = MagnitudePruner(MagnitudePruner.Options(norm=norm))
    by_hand = torch.tensor(scores_by_hand(unet, asked.space, norm), dtype=torch.float64)
    torch.testing.assert_close(pruner.scores(asked), by_hand)
    assert torch.equal(pruner.prune(asked).architecture.gates, keep_best(asked, by_hand).gates)
