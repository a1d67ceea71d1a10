"""What the criteria share: which values a unit carries, and scores that compare across sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.core.anatomy import Part
from aptp.core.architecture import SearchSpace
from aptp.core.pruner import PrunerContext

Norm = Literal["l1", "l2"]
Values = Mapping[str, Tensor]
"""One value a weight, by the name and in the shape of the parameter; convolutions and linear layers only."""


def weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the convolutions and linear layers of `module`, by name."""
    layers = ((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return {f"{path}.weight": layer.weight for path, layer in layers}


def gate_scores(module: nn.Module, space: SearchSpace, values: Values, norm: Norm) -> Float[Tensor, "gates"]:
    """One score a gate, in float64.

    A unit's is the mean over the layers that carry it of the norm of its values there, divided by the mean of its site,
    so that layers of different scale compare; a block's is the norm of all its values, divided by the mean over the
    blocks of its type. The norm is the mean absolute value (l1) or the root mean square (l2).
    """
    scores = torch.empty(space.num_gates, dtype=torch.float64)
    blocks: dict[type, list[int]] = {}
    for site, place in zip(space.sites, space.slices, strict=True):
        if site.is_block:
            inside = [value.detach().flatten() for name, value in values.items() if name.startswith(f"{site.path}.")]
            scores[place] = _norm(torch.cat(inside), norm).cpu()
            blocks.setdefault(type(module.get_submodule(site.path)), []).append(place.start)
        else:
            scores[place] = _relative(_of_units(site, values, norm).cpu())
    for members in blocks.values():
        scores[members] = _relative(scores[members])
    return scores


def _of_units(site: Part, values: Values, norm: Norm) -> Float[Tensor, "units"]:
    layers = []
    for cut in site.cuts:
        if (value := values.get(f"{cut.path}.weight")) is not None:
            rows = value.detach() if cut.side == "out" else value.detach().transpose(0, 1)
            layers.append(_norm(rows.reshape(cut.chunks, site.units, -1).transpose(0, 1).flatten(1), norm))
    return torch.stack(layers).mean(0)


def _norm(values: Float[Tensor, "*units values"], norm: Norm) -> Float[Tensor, "*units"]:
    values = values.double()
    return values.abs().mean(-1) if norm == "l1" else values.square().mean(-1).sqrt()


def _relative(scores: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    return scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)


def taylor_values(context: PrunerContext, losses: Iterable[Float[Tensor, ""]]) -> dict[str, Tensor]:
    """Weight times the gradient of the summed losses: the first-order change of the loss as the weight goes to zero."""
    carried = weights(context.module)
    sums = {name: torch.zeros_like(weight) for name, weight in carried.items()}
    for loss in losses:
        slopes = torch.autograd.grad(loss, list(carried.values()), allow_unused=True)
        for name, slope in zip(carried, slopes, strict=True):
            if slope is not None:
                sums[name] += slope
    return {name: weight.detach() * sums[name] for name, weight in carried.items()}
