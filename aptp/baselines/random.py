"""Random: keep units drawn by seed; what any criterion must beat."""

from __future__ import annotations

import torch

from aptp.baselines.options import RandomOptions
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner, keep_best


class RandomPruner(StaticPruner):
    """Every gate has the same chance to stay."""

    Options = RandomOptions

    def __init__(self, options: RandomOptions) -> None: ...

    def prune(self, context: PrunerContext) -> Pruned:
        generator = torch.Generator().manual_seed(context.seed)
        return Pruned(keep_best(context, torch.rand(context.space.num_gates, generator=generator)))
