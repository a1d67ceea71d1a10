"""Magnitude: keep the units with the largest weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.baselines.options import MagnitudeOptions
from aptp.core.anatomy import Part
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner, keep_best


class MagnitudePruner(StaticPruner):
    """A unit's score is the mean absolute (or root mean square) value of its weights over the layers that carry it.

    Scores are divided by the mean of their site, so that layers of different scale compare; a block's is that of all
    its weights, divided by the mean over the blocks of its type. (Han et al. 2015; Li et al. 2017 for the filters.)
    """

    Options = MagnitudeOptions

    def __init__(self, options: MagnitudeOptions) -> None:
        self.options = options

    def prune(self, context: PrunerContext) -> Pruned:
        scores = torch.empty(context.space.num_gates, dtype=torch.float64)
        blocks: dict[type, list[tuple[int, float]]] = {}
        for site, place in zip(context.space.sites, context.space.slices, strict=True):
            if site.is_block:
                block = context.module.get_submodule(site.path)
                blocks.setdefault(type(block), []).append((place.start, self._of_block(block)))
            else:
                own = self._of_units(context.module, site)
                scores[place] = own / own.mean()
        for members in blocks.values():
            mean = sum(score for _, score in members) / len(members)
            for gate, score in members:
                scores[gate] = score / mean
        return Pruned(keep_best(context, scores))

    def _of_units(self, module: nn.Module, site: Part) -> Float[Tensor, "units"]:
        layers = []
        for cut in site.cuts:
            layer = module.get_submodule(cut.path)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = layer.weight.detach().double()
                weight = weight if cut.side == "out" else weight.transpose(0, 1)
                layers.append(self._norm(weight.reshape(cut.chunks, site.units, -1).transpose(0, 1).flatten(1)))
        return torch.stack(layers).mean(0)

    def _of_block(self, block: nn.Module) -> float:
        return float(self._norm(torch.cat([p.detach().double().flatten() for p in block.parameters() if p.ndim > 1])))

    def _norm(self, weights: Float[Tensor, "*units values"]) -> Float[Tensor, "*units"]:
        return weights.abs().mean(-1) if self.options.norm == "l1" else weights.square().mean(-1).sqrt()
