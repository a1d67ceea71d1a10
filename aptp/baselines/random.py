"""Random: keep units drawn by seed; what any criterion must beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.baselines.options import RandomOptions
from aptp.core.pruner import PrunerContext, ScoringPruner


class RandomPruner(ScoringPruner):
    """Every gate has the same chance to stay."""

    Options = RandomOptions

    def __init__(self, options: RandomOptions) -> None: ...

    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        return torch.rand(context.space.num_gates, generator=torch.Generator().manual_seed(context.seed))
