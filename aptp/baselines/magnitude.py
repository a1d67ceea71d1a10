"""Magnitude: keep the units with the largest weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from aptp.baselines._scores import magnitudes
from aptp.baselines.options import MagnitudeOptions
from aptp.core.pruner import PrunerContext, ScoringPruner


class MagnitudePruner(ScoringPruner):
    """A unit's score is the mean absolute (or root mean square) value of its weights over the layers that carry it.

    Scores are divided by the mean of their site, so that layers of different scale compare; a block's is that of all
    its weights, divided by the mean over the blocks of its type. (Han et al. 2015; Li et al. 2017 for the filters.)
    """

    Options = MagnitudeOptions

    def __init__(self, options: MagnitudeOptions) -> None:
        self.options = options

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        return magnitudes(context.module, context.space, self.options.norm)
