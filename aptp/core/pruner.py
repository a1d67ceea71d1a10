"""Static pruners: one architecture for all prompts, within the same budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel
from torch import Tensor, nn

from aptp.core.architecture import Architecture, SearchSpace, harden
from aptp.core.budget import CostModel
from aptp.core.calibration import calibrate
from aptp.core.errors import RequestError

TOLERANCE = 0.01
"""The share of its target by which a cost may miss it."""


class CalibrationLoss(Protocol):
    """Runs the dense module on batches of training data."""

    def __call__(self, *, batches: int, timestep: int | None = None) -> Iterator[Float[Tensor, ""]]:
        """The denoising losses of so many batches, differentiable in the module's weights.

        A batch comes in the equal parts in which a run saves memory, one after another; what a part yields is its share
        of the batch's loss. Every call starts with the same batches and noise. Hooks on the module's layers see what
        they are called with, and once more what is computed again for a gradient; who wants only the former asks under
        `torch.no_grad()`.

        Args:
            timestep: the diffusion time of every example, whose mean squared error is then the plain one; by default
                each has a random time, and a weight for it, as in training.
        """


def _no_search() -> Pruned:
    raise RequestError("nothing can be searched for here; a run of the harness can.")


@dataclass(frozen=True)
class PrunerContext:
    """What a static pruner may look at."""

    module: nn.Module
    space: SearchSpace
    cost_model: CostModel
    target: float
    """The budget, a fraction of the dense cost."""
    seed: int
    calibration_loss: CalibrationLoss
    timesteps: int = 1000
    """Diffusion times: 0 is nearly clean, `timesteps` − 1 nearly noise."""
    search: Callable[[], Pruned] = _no_search
    """The search stage for one code that serves every prompt."""


@dataclass(frozen=True)
class Pruned:
    """An architecture, and new values of weights by name for a method that updates the ones it keeps."""

    architecture: Architecture
    weights: Mapping[str, Tensor] | None = None
    uncalibrated: float | None = None
    """The cost, as a fraction of dense, before a method that learns was calibrated onto the budget."""


class StaticPruner(ABC):
    """Chooses one architecture for all prompts."""

    Options: ClassVar[type[BaseModel]]
    takes_target: ClassVar[bool] = True
    """Whether it meets the budget's target; otherwise its cost is its own, and no target is asked of it."""
    searches: ClassVar[bool] = False
    """Whether it runs the search stage, `PrunerContext.search`."""

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    def check(self, context: PrunerContext) -> None:
        """Refuse, before any long work, a model, space or target that the method cannot prune.

        Raises:
            RequestError: in one sentence with the reason and the floor.
        """
        if self.takes_target:
            context.cost_model.check(context.target)

    @abstractmethod
    def prune(self, context: PrunerContext) -> Pruned:
        """An architecture whose cost is the context's target within 1%, or half a level of a coarse space.

        Raises:
            RequestError: for what `check` refuses.
        """


class ScoringPruner(StaticPruner):
    """Scores every gate by itself and keeps the best; its scores can also tell a search where to start."""

    @abstractmethod
    def scores(self, context: PrunerContext) -> Float[Tensor, "gates"]:
        """Of every gate; the larger, the longer it stays. Infinite for one that stays whatever the budget."""

    def prune(self, context: PrunerContext) -> Pruned:
        self.check(context)
        return Pruned(keep_best(context, self.scores(context)))


def keep_best(context: PrunerContext, scores: Float[Tensor, "gates"]) -> Architecture:
    """The architecture that keeps the gates with the highest scores and meets the budget.

    Ranks replace scores, so that only their order counts; of equal scores the later gates stay. A gate whose score is
    infinite stays, whatever the budget. Where no threshold comes within 1% of the target, gates that would take the
    cost further below it are passed over, and those with the next higher scores go. In an aligned space units
    go as many at a time as keep a width aligned, and one that stays keeps those it would go with.

    Raises:
        RequestError: for a budget under the floor of the space, or of the gates that may go.
    """
    if scores.isnan().any():
        site = context.space.sites[int(context.space.site_of_gate[int(scores.isnan().nonzero()[0])])]
        raise RequestError(f"a score of {site.path!r} is not a number; the model's weights or gradients are damaged.")
    scores = context.space.aligned(scores.double())
    check_reach(context, scores.isfinite())
    order = scores.argsort(stable=True)
    ranks = order.argsort().double() / scores.numel()
    threshold = calibrate(context.cost_model, ranks[None], torch.ones(1), context.target)
    gates = harden(context.space, ranks, threshold)
    if _miss(context, gates) > TOLERANCE:
        passing = _passing_over(context, ranks, order[scores[order].isfinite()])
        gates = min(gates, passing, key=lambda g: _miss(context, g))
    return Architecture(context.space, gates.float())


def _miss(context: PrunerContext, gates: Float[Tensor, "gates"]) -> float:
    return abs(float(context.cost_model.fraction(gates)) / context.target - 1)


def _passing_over(
    context: PrunerContext, ranks: Float[Tensor, "gates"], order: Int[Tensor, "going"]
) -> Float[Tensor, "gates"]:
    """Close the gates in `order`, with those they go with, but for what would overshoot, until the target is met."""
    space = context.space
    gates, ranks = space.ones().double(), space.aligned(ranks)
    for gate in order.tolist():
        site = int(space.site_of_gate[gate])
        going = (ranks == ranks[gate]) & (space.site_of_gate == site)
        fewer = torch.where(going, 0.0, gates)
        if not space.sites[site].is_block and fewer[space.slices[site]].sum() == 0:
            continue
        if context.cost_model.fraction(fewer) >= context.target * (1 - TOLERANCE):
            gates = fewer
        if _miss(context, gates) <= TOLERANCE:
            break
    return gates


def check_reach(context: PrunerContext, may_go: Bool[Tensor, "gates"]) -> None:
    """Refuse a budget that takes more than the gates in `may_go`.

    Raises:
        RequestError: naming the floor, of the space or of these gates.
    """
    costs = context.cost_model
    costs.check(context.target)
    floor = float(costs.fraction(harden(context.space, (~may_go).double(), threshold=1.0)))
    if context.target < floor:
        raise RequestError(
            f"a budget of {context.target:g} is under the floor of what this pruner drops: with all of it gone, "
            f"{floor:.3f} of the dense {costs.unit} stay; ask for more, or choose a pruner that drops more."
        )


def misfit(context: PrunerContext, reason: str) -> RequestError:
    """The error for a method that cannot prune this model or space: the reason, and the floor for other methods."""
    floor = f"{context.cost_model.floor:.3f} of the dense {context.cost_model.unit}"
    return RequestError(f"{reason} (for other pruners, the floor of this space is {floor}).")
