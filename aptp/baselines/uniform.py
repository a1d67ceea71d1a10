"""Uniform: the same share of units at every width site."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.baselines._scores import magnitudes, taylor_scores
from aptp.baselines.options import UniformOptions
from aptp.core.pruner import PrunerContext, ScoringPruner, misfit


class UniformPruner(ScoringPruner):
    """Every width site keeps the same share of its units, up to one unit; a criterion says which.

    Blocks, where the space has them, go only when every width site is down to its last unit, those first whose
    criterion is lowest.
    """

    Options = UniformOptions

    def __init__(self, options: UniformOptions) -> None:
        self.options = options

    def check(self, context: PrunerContext) -> None:
        super().check(context)
        if not context.space.width_gates.any():
            raise misfit(
                context,
                "pruner 'uniform' takes the same share of every width site, and this space has none; choose "
                "granularity width or width-depth",
            )

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        criterion = self._criterion(context)
        scores = 1 + criterion  # of blocks: above every width gate
        for site, place in zip(context.space.sites, context.space.slices, strict=True):
            if not site.is_block:
                ranks = criterion[place].argsort().argsort()
                scores[place] = (ranks + 0.5) / site.units
        return scores

    def _criterion(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        match self.options.criterion:
            case "magnitude":
                return magnitudes(context.module, context.space)
            case "taylor":
                return taylor_scores(context, context.calibration_loss(batches=self.options.batches))
            case "random":
                generator = torch.Generator().manual_seed(context.seed)
                return torch.rand(context.space.num_gates, generator=generator, dtype=torch.float64)
