"""Taylor: keep the units whose removal would change the loss most, to first order."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from aptp.baselines._scores import taylor_scores
from aptp.baselines.options import TaylorOptions
from aptp.core.pruner import PrunerContext, ScoringPruner


class TaylorPruner(ScoringPruner):
    """A gate's score is Σ |w · ∂L/∂w| over all weights that it closes, the gradient summed over batches first.

    Scores are in the loss's own units and are not divided by their site's mean, as magnitude's must be. (Molchanov et
    al. 2019, "Importance Estimation for Neural Network Pruning", by absolute value.)
    """

    Options = TaylorOptions

    def __init__(self, options: TaylorOptions) -> None:
        self.options = options

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        return taylor_scores(context, context.calibration_loss(batches=self.options.batches))
