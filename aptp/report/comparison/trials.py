"""What a comparison knows: every method's figures by protocol, budget and seed, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from aptp.core.record import Result
from aptp.report.comparison.intervals import Interval, interval, paired
from aptp.report.comparison.methods import Flat, Method, Naming
from aptp.report.comparison.protocols import Protocol, named_differences
from aptp.report.comparison.sources import Failure, Source
from aptp.report.measures import Measure, method_of

EQUAL_COST = 0.015
"""Costs nearer to the budget than this share of it are equal to it."""


class Setting(NamedTuple):
    """What methods are compared within: the letter of a protocol, and a budget as a fraction of dense."""

    letter: str
    budget: float


@dataclass(frozen=True)
class Trial:
    """A method with one seed: its figures by key, and the run that they are from."""

    source: Source
    result: Result
    method: Method
    config: Flat
    letter: str
    budget: float
    seed: int
    figures: dict[str, float]

    @property
    def own(self) -> bool:
        """Whether it is the method of its run, and not one that ran beside."""
        return self.result is method_of(self.source.record)


@dataclass
class Comparison:
    """Everything that is told: finished runs, failed ones, and every method's figures."""

    sources: list[Source]
    failures: list[Failure]
    protocols: dict[str, Protocol]
    """Letter → protocol, the first that of the most rows."""
    rows: list[Trial]
    """Of every run, repetitions included."""
    naming: Naming
    reference: Method
    measures: list[Measure]
    """Teacher error and metrics, in the order in which they count."""
    warnings: list[str] = field(default_factory=list)
    trials: dict[tuple[str, float | None, Method], dict[int, Trial]] = field(default_factory=dict)
    """By protocol, budget (the dense model has none) and method, then by seed."""

    @property
    def mixed(self) -> bool:
        """Whether there are several protocols."""
        return len(self.protocols) > 1

    @property
    def primary(self) -> Measure | None:
        """The measure that decides: the first metric of the pictures, or the teacher error where there is none."""
        known = [measure for measure in self.measures if measure.less is not None]
        return next((m for m in known if m.key != "teacher_error"), next(iter(known), None))

    @cached_property
    def settings(self) -> list[Setting]:
        """Every protocol and budget with a pruned method."""
        return sorted({Setting(letter, budget) for letter, budget, _ in self.trials if budget is not None})

    @cached_property
    def main(self) -> Setting:
        """The setting that figures of one setting show: where the reference has most seeds, then most methods are."""
        return max(
            self.settings,
            key=lambda s: (len(self._of(s, self.reference)), len(self.methods(s)), -abs(s.budget - 0.66)),
        )

    def methods(self, setting: Setting, kind: str | None = None) -> list[Method]:
        """Methods of a setting: the dense model with falling steps, the reference, the others as runs name them."""
        places = [m for letter, b, m in self.trials if letter == setting.letter and b in (None, setting.budget)]
        places.sort(key=lambda m: (m.kind != "dense", m != self.reference))
        dense = sorted((m for m in places if m.kind == "dense"), key=lambda m: -(self.mean(setting, m, "cost") or 0))
        found = [*dense, *(m for m in places if m.kind != "dense")]
        return [m for m in found if kind is None or m.kind == kind]

    def series(self, setting: Setting, method: Method, key: str) -> dict[int, float]:
        """A figure by seed."""
        return {s: t.figures[key] for s, t in sorted(self._of(setting, method).items()) if key in t.figures}

    def seeds(self, setting: Setting, method: Method) -> list[int]:
        """The seeds that a method was run with."""
        return sorted(self._of(setting, method))

    def interval(self, setting: Setting, method: Method, key: str) -> Interval | None:
        """A figure's mean over the seeds, with its interval."""
        return interval(self.series(setting, method, key).values())

    def mean(self, setting: Setting, method: Method, key: str) -> float | None:
        """A figure's mean over the seeds."""
        found = self.interval(setting, method, key)
        return found.mean if found else None

    def difference(self, setting: Setting, method: Method, other: Method, key: str) -> Interval | None:
        """method − other, over the seeds that both have."""
        return paired(self.series(setting, method, key), self.series(setting, other, key))

    def runs(self, setting: Setting, method: Method) -> list[Trial]:
        """A method's trials, one a seed."""
        return [trial for _, trial in sorted(self._of(setting, method).items())]

    def equal_cost(self, setting: Setting, method: Method) -> bool:
        """Whether a method's cost is the budget."""
        cost = self.mean(setting, method, "cost")
        return cost is not None and abs(cost / setting.budget - 1) <= EQUAL_COST

    def complete(self, setting: Setting, methods: Iterable[Method], key: str) -> dict[Method, float]:
        """A figure's mean for those of the methods that have it for most seeds."""
        found = {m: known for m in methods if (known := self.interval(setting, m, key))}
        most = max((known.n for known in found.values()), default=0)
        return {method: known.mean for method, known in found.items() if known.n == most}

    def label(self, setting: Setting, method: Method) -> str:
        """A method's name; with several protocols also the letter of its own, and what that changes if one thing."""
        if not self.mixed:
            return method.name
        changed = self.changed(setting.letter) if method.kind != "dense" else []
        return f"{', '.join([method.name, *(changed if len(changed) == 1 else [])])} [{setting.letter}]"

    def changed(self, letter: str) -> list[str]:
        """In what a protocol differs from the first, where that is a setting."""
        return named_differences(self.protocols[letter], next(iter(self.protocols.values())))

    def _of(self, setting: Setting, method: Method) -> dict[int, Trial]:
        budget = None if method.kind == "dense" else setting.budget
        return self.trials.get((setting.letter, budget, method), {})
