"""Diff-Pruning: Taylor, over the informative times alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from aptp.baselines.diff_pruning import DiffPruningPruner
from aptp.core.pruner import PrunerContext


@pytest.fixture
def fading(asked: PrunerContext) -> PrunerContext:
    """Losses of which those at later times are smaller: 1 at t = 0, 0 at the last."""

    def losses(*, batches: int, timestep: int | None = None) -> Iterator[torch.Tensor]:
        assert timestep is not None
        for loss in asked.calibration_loss(batches=batches, timestep=timestep):
            yield loss / loss.detach() * (1 - timestep / 999)

    return dataclasses.replace(asked, calibration_loss=losses)


def pruner(**options: float) -> DiffPruningPruner:
    return DiffPruningPruner(DiffPruningPruner.Options(**options))


def test_times_of_small_loss_are_left_out(fading: PrunerContext) -> None:
    assert pruner(times=4, threshold=0).informative_times(fading) == [0, 333, 666, 999]
    assert pruner(times=4, threshold=0.3).informative_times(fading) == [0, 333, 666]
    assert pruner(times=4, threshold=0.5).informative_times(fading) == [0, 333]
    assert pruner(times=4, threshold=1).informative_times(fading) == [0]
    few = dataclasses.replace(fading, timesteps=3)
    assert pruner(times=50, threshold=0).informative_times(few) == [0, 1, 2]


def test_scores_are_those_by_hand(fading: PrunerContext, taylor_by_hand) -> None:
    scores = pruner(times=4, threshold=0.5, batches=2).scores(fading)
    losses = [loss for time in (0, 333) for loss in fading.calibration_loss(batches=2, timestep=time)]
    torch.testing.assert_close(scores, taylor_by_hand(fading, losses), rtol=1e-4, atol=0)
    assert not torch.allclose(scores, pruner(times=4, threshold=0, batches=2).scores(fading), rtol=0.01)
