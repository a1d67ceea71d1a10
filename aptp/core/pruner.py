"""Static pruners: one architecture for all prompts, within the same budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from aptp.core.architecture import Architecture, SearchSpace, harden
from aptp.core.budget import CostModel
from aptp.core.calibration import calibrate


@dataclass(frozen=True)
class PrunerContext:
    """What a static pruner may look at."""

    module: nn.Module
    space: SearchSpace
    cost_model: CostModel
    target: float
    """The budget, a fraction of the dense cost."""
    seed: int
    calibration_loss: Callable[[], Iterator[Float[Tensor, ""]]]
    """Yields the denoising loss of one batch of training data after another, differentiable in the module's weights."""


@dataclass(frozen=True)
class Pruned:
    """An architecture, and new values of weights by name for a method that updates the ones it keeps."""

    architecture: Architecture
    weights: Mapping[str, Tensor] | None = None


class StaticPruner(ABC):
    """Chooses one architecture for all prompts."""

    Options: ClassVar[type[BaseModel]]

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    @abstractmethod
    def prune(self, context: PrunerContext) -> Pruned:
        """An architecture whose cost is the context's target within 1%, or half a level of a coarse space."""


def keep_best(context: PrunerContext, scores: Float[Tensor, "gates"]) -> Architecture:
    """The architecture that keeps the gates with the highest scores and meets the budget.

    Ranks replace scores, so that only their order counts.

    Raises:
        RequestError: for a budget under the floor of the space.
    """
    context.cost_model.check(context.target)
    ranks = scores.double().argsort().argsort().double() / scores.numel()
    threshold = calibrate(context.cost_model, ranks[None], torch.ones(1), context.target)
    return Architecture(context.space, harden(context.space, ranks, threshold).float())
