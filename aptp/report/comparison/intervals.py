"""Means over seeds with their confidence intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t as student

LEVEL = 0.95
"""Confidence of every interval."""
FEWEST = 3
"""Figures under which there is none: Student's interval of two is 25 standard errors wide, and rests on two figures."""


@dataclass(frozen=True)
class Interval:
    """A mean of `n` figures and half the width of its interval, `None` where they are too few."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half

    def above(self, value: float) -> bool:
        """Whether the whole interval is above a value; never, where there is no interval."""
        return self.half is not None and self.mean - self.half > value

    def below(self, value: float) -> bool:
        """Whether the whole interval is below a value; never, where there is no interval."""
        return self.half is not None and self.mean + self.half < value


def interval(figures: Iterable[float]) -> Interval | None:
    """Student's t interval of the mean: x̄ ± t₍n−1₎ · s / √n. Figures that are not finite do not count."""
    known = [figure for figure in figures if math.isfinite(figure)]
    n = len(known)
    if n < FEWEST:
        return Interval(fmean(known), None, n) if known else None
    half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * stdev(known) / math.sqrt(n)
    return Interval(fmean(known), half, n)


def paired(mine: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """The interval of mine − others over the seeds that both have."""
    return interval(mine[seed] - others[seed] for seed in mine if seed in others)


Standing = Literal["better", "worse", "open"]


def standing(difference: Interval, less: bool) -> Standing:
    """What a paired difference says, `less` telling whether less is better; open where its interval contains 0."""
    if difference.below(0):
        return "better" if less else "worse"
    if difference.above(0):
        return "worse" if less else "better"
    return "open"
