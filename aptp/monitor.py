"""Watching traffic: what it costs, who serves it, how far it is from the training prompts."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from aptp.bundle import Bundle
from aptp.core.errors import RequestError
from aptp.neighbours import Neighbours
from aptp.routing import Route

NORMAL = 2.576
"""Standard errors on both sides that make a 99% interval."""
FEWEST = 100
"""Prompts under which nothing is said of a mean."""
FAR = 0.05
"""Share of the training prompts that count as far from the others."""
TOO_MANY = 2 * FAR
"""Share of far prompts over which traffic is not what the run was trained on."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 99% interval, for prompts that come independently of one another."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Traffic:
    """What a monitor saw. Costs are fractions of dense; means over the last prompts are None while these are few."""

    served: int
    """Prompts since the start."""
    experts: dict[int, int]
    """How many of them each expert served; −1 is the dense model."""
    last: int
    """The prompts that the following figures are of: the last ones, at most as many as the window."""
    budget: float
    cost: Interval | None
    far: Interval | None
    """Share of prompts whose nearest training prompt is farther than that of 95% of the training prompts; 0.05 is what
    training prompts themselves have. None, too, where the run keeps none of them."""
    alarms: list[str]
    """One sentence for each thing that no longer holds."""


class Monitor:
    """Watches routes as they are made. Its memory does not grow with traffic; threads may share it.

    It speaks up when the 99% interval of the last prompts' mean cost lies outside the budget by more than the
    tolerance, or that of their share of far prompts over 0.1, twice what training prompts have.
    """

    def __init__(
        self,
        experts: int,
        budget: float,
        known: Neighbours | None = None,
        *,
        window: int = 1000,
        tolerance: float = 0.02,
    ) -> None:
        """Start with nothing seen.

        Args:
            budget: what the average prompt is to cost, as a fraction of dense.
            known: training prompts; without them distance is not watched.
            window: how many of the last prompts means are taken over.
            tolerance: the share of the budget by which the mean may be off.
        """
        if window < FEWEST:
            raise RequestError(f"a window of {window} prompts says nothing; {FEWEST} or more are right.")
        self.budget, self.tolerance = budget, tolerance
        self._known = known if known and len(known) > 1 else None
        self._far = _usual(self._known) if self._known else math.inf
        self._experts: Counter[int] = Counter(dict.fromkeys(range(experts), 0))
        self._costs: deque[float] = deque(maxlen=window)
        self._distant: deque[bool] = deque(maxlen=window)
        self._lock = threading.Lock()

    @classmethod
    def of(cls, bundle: Bundle, *, window: int = 1000, tolerance: float = 0.02) -> Monitor:
        """A monitor of a bundle's traffic against its budget, that of its calibration if it has one."""
        if bundle.budget is None:
            raise RequestError(f"{str(bundle.folder)!r} did not keep its budget: there is nothing to watch.")
        known, target = Neighbours.of(bundle), bundle.budget.target
        return cls(len(bundle.fractions), target, known, window=window, tolerance=tolerance)

    def observe(self, routes: Sequence[Route], embeds: Float[Tensor, "routes embed"] | None = None) -> None:
        """Count prompts that were routed; with their embeddings, how far they are from the training prompts, too."""
        distant: list[bool] = []
        if self._known and embeds is not None and len(routes):
            distant = (1 - self._known.nearest(embeds, 1)[0][:, 0] > self._far).tolist()
        with self._lock:
            self._experts.update(route.expert for route in routes)
            self._costs.extend(route.cost for route in routes)
            self._distant.extend(distant)

    def report(self) -> Traffic:
        """What was seen so far."""
        with self._lock:
            experts, costs, distant = dict(self._experts), list(self._costs), list(self._distant)
        cost, far = _mean(costs), _share(distant)
        alarms = [*self._of_cost(cost, len(costs)), *_of_distance(far, len(distant))]
        return Traffic(sum(experts.values()), experts, len(costs), self.budget, cost, far, alarms)

    def _of_cost(self, cost: Interval | None, count: int) -> list[str]:
        if cost is None:
            return []
        over = cost.low > self.budget * (1 + self.tolerance)
        if not over and cost.high >= self.budget * (1 - self.tolerance):
            return []
        return [
            f"the budget of {self.budget:.3f} no longer holds: the last {count:,} prompts cost {cost.mean:.3f} of "
            f"dense on average (99% interval {cost.low:.3f} to {cost.high:.3f}), "
            f"{'over' if over else 'under'} it by more than {self.tolerance:.0%}; aptp calibrate fits routes to them."
        ]


def _usual(known: Neighbours) -> float:
    """The distance within which 95% of the training prompts have another one."""
    nearest, _ = known.nearest(known.prompts.embeds, 2)  # the first is the prompt itself
    return float((1 - nearest[:, 1]).double().quantile(1 - FAR))


def _mean(values: Sequence[float]) -> Interval | None:
    if len(values) < FEWEST:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    within = NORMAL * math.sqrt(variance / len(values))
    return Interval(mean, mean - within, mean + within)


def _share(flags: Sequence[bool]) -> Interval | None:
    """The share of those that are set, with Wilson's interval, which holds near 0 and 1 as well."""
    if (count := len(flags)) < FEWEST:
        return None
    share, pull = sum(flags) / count, NORMAL**2 / count
    middle = (share + pull / 2) / (1 + pull)
    within = NORMAL / (1 + pull) * math.sqrt(share * (1 - share) / count + pull / (4 * count))
    return Interval(share, max(0.0, middle - within), min(1.0, middle + within))


def _of_distance(far: Interval | None, count: int) -> list[str]:
    if far is None or far.low <= TOO_MANY:
        return []
    return [
        f"the traffic is not what the run was trained on: of the last {count:,} prompts {far.mean:.0%} are farther "
        f"from the nearest training prompt than {1 - FAR:.0%} of those are from one another (99% interval "
        f"{far.low:.0%} to {far.high:.0%}); quality there was never measured."
    ]
