"""Taylor pruning: scores as by hand."""

from __future__ import annotations

import torch

from aptp.baselines.taylor import TaylorPruner
from aptp.core.pruner import PrunerContext


def test_scores_are_those_by_hand(asked: PrunerContext, taylor_by_hand) -> None:
    scores = TaylorPruner(TaylorPruner.Options(batches=3)).scores(asked)
    torch.testing.assert_close(scores, taylor_by_hand(asked, asked.calibration_loss(batches=3)), rtol=1e-4, atol=0)


def test_more_batches_change_the_scores(asked: PrunerContext) -> None:
    one, three = (TaylorPruner(TaylorPruner.Options(batches=n)).scores(asked) for n in (1, 3))
    assert not torch.allclose(one, three, rtol=0.01)
