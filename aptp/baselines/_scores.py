"""What the criteria share: the values that a unit carries, and scores of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.core.anatomy import Part
from aptp.core.architecture import SearchSpace
from aptp.core.pruner import PrunerContext

Values = Mapping[str, Tensor]
"""One value a weight of the convolutions and linear layers, by the parameter's name and in its shape."""


LEAST = 1e-30
"""A mean size is taken to be at least this: a site of zeros is the first to go."""


def weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the convolutions and linear layers of `module`, by name."""
    layers = ((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return {f"{path}.weight": layer.weight for path, layer in layers}


def magnitudes(module: nn.Module, space: SearchSpace, norm: Literal["l1", "l2"] = "l1") -> Float[Tensor, "gates"]:
    """The size of each gate's weights, in float64.

    A unit's is the mean over the layers that carry it of the mean absolute value (l1) or root mean square (l2) of its
    weights there, divided by the mean of its site, so that layers of different scale compare; a block's is that of all
    its weights, divided by the mean over the blocks of its type.
    """
    values = weights(module)

    def size(values: Float[Tensor, "*units values"]) -> Float[Tensor, "*units"]:
        return values.abs().mean(-1) if norm == "l1" else values.square().mean(-1).sqrt()

    sizes = torch.empty(space.num_gates, dtype=torch.float64)
    peers: dict[type, list[int]] = {}
    for site, place in zip(space.sites, space.slices, strict=True):
        if site.is_block:
            sizes[place] = size(_of_block(site, values)).cpu()
            peers.setdefault(type(module.get_submodule(site.path)), []).append(place.start)
        else:
            sizes[place] = torch.stack([size(layer) for layer in _of_units(site, values)]).mean(0).cpu()
            sizes[place] /= sizes[place].mean().clamp(min=LEAST)
    for gates in peers.values():
        sizes[gates] /= sizes[gates].mean().clamp(min=LEAST)
    return sizes


def taylor_scores(context: PrunerContext, losses: Iterable[Float[Tensor, ""]]) -> Float[Tensor, "gates"]:
    """Σ |w · ∂L/∂w| over all weights that a gate closes, L the sum of the losses, in float64.

    To first order, how much the loss may change; in its own units, so that units, sites and blocks compare as they are.
    """
    carried = weights(context.module)
    slopes = {name: torch.zeros_like(weight) for name, weight in carried.items()}
    for loss in losses:
        for name, slope in zip(
            carried, torch.autograd.grad(loss, list(carried.values()), allow_unused=True), strict=True
        ):
            if slope is not None:
                slopes[name] += slope
    values = {name: (weight.detach() * slopes[name]).abs() for name, weight in carried.items()}
    scores = torch.empty(context.space.num_gates, dtype=torch.float64)
    for site, place in zip(context.space.sites, context.space.slices, strict=True):
        if site.is_block:
            scores[place] = _of_block(site, values).sum().cpu()
        else:
            scores[place] = sum(layer.sum(-1).cpu() for layer in _of_units(site, values))
    return scores


def _of_block(site: Part, values: Values) -> Float[Tensor, "values"]:
    return torch.cat([v.detach().double().flatten() for name, v in values.items() if name.startswith(f"{site.path}.")])


def _of_units(site: Part, values: Values) -> list[Float[Tensor, "units values"]]:
    """Layer by layer what each unit carries there."""
    layers = []
    for cut in site.cuts:
        if (value := values.get(f"{cut.path}.weight")) is not None:
            rows = value.detach().double() if cut.side == "out" else value.detach().double().transpose(0, 1)
            layers.append(rows.reshape(cut.chunks, site.units, -1).transpose(0, 1).flatten(1))
    return layers
