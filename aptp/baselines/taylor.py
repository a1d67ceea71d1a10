"""Taylor: keep the units whose removal would change the loss most, to first order."""

from __future__ import annotations

from itertools import islice

from jaxtyping import Float
from torch import Tensor

from aptp.baselines._scores import gate_scores, taylor_values
from aptp.baselines.options import TaylorOptions
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner, keep_best


class TaylorPruner(StaticPruner):
    """A weight's value is |w · Σ ∂L/∂w|, the gradient summed over the batches before the absolute value is taken.

    Units, sites and blocks are scored from these values as magnitude's are from the weights: the mean over a unit's
    weights, then over the layers that carry it, relative to its site. (Molchanov et al. 2019, "Importance Estimation
    for Neural Network Pruning", their first-order form for weights.)
    """

    Options = TaylorOptions

    def __init__(self, options: TaylorOptions) -> None:
        self.options = options

    def prune(self, context: PrunerContext) -> Pruned:
        self.check(context)
        return Pruned(keep_best(context, self.scores(context)))

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        """Of every gate; the larger, the longer it stays."""
        values = taylor_values(context, islice(context.calibration_loss(), self.options.batches))
        return gate_scores(context.module, context.space, values, "l1")
