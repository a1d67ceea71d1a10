"""Diff-Pruning: Taylor over the informative diffusion times only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.baselines._scores import taylor_scores
from aptp.baselines.options import DiffPruningOptions
from aptp.core.pruner import PrunerContext, ScoringPruner


class DiffPruningPruner(ScoringPruner):
    """Taylor whose gradient is summed over the times t with L_t / max L ≥ the threshold, on the same pictures.

    L_t is the mean squared error of the dense model at t, on a grid over all times; where it is small next to the
    largest, gradients are mostly noise. Units are scored as Taylor's. (Fang, Ma and Wang 2023, "Structural Pruning for
    Diffusion Models". Their code walks up from t = 0 and stops at the first time under the threshold. For ε that is the
    same as long as the loss falls with t; that of v need not, so here each time is judged by itself.)
    """

    Options = DiffPruningOptions

    def __init__(self, options: DiffPruningOptions) -> None:
        self.options = options

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        return taylor_scores(context, self._informative_losses(context))

    def informative_times(self, context: PrunerContext) -> list[int]:
        """The times of the grid that are kept, in rising order."""
        grid = torch.linspace(0, context.timesteps - 1, self.options.times).round().long().unique().tolist()
        with torch.no_grad():
            losses = torch.tensor([sum(float(loss) for loss in self._losses_at(context, time)) for time in grid])
        keep = losses >= self.options.threshold * losses.max()
        return [time for time, kept in zip(grid, keep.tolist(), strict=True) if kept]

    def _informative_losses(self, context: PrunerContext) -> Iterator[Float[Tensor, ""]]:
        for time in self.informative_times(context):
            yield from self._losses_at(context, time)

    def _losses_at(self, context: PrunerContext, time: int) -> Iterator[Float[Tensor, ""]]:
        return context.calibration_loss(batches=self.options.batches, timestep=time)
