"""The rows of all records in their places: protocol, budget, method, seed. What several runs hold counts once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from aptp.core.errors import RequestError, unknown
from aptp.core.record import Record, Result
from aptp.report.comparison.intervals import Interval, interval, paired
from aptp.report.comparison.methods import Flat, Method, Naming, config_of, dense_method
from aptp.report.comparison.protocols import (
    Protocol,
    check_one,
    differing,
    lettered,
    named_differences,
    protocol_of,
)
from aptp.report.comparison.sources import Failure, Source
from aptp.report.measures import Measure, dense_of, method_of, quality_measures
from aptp.report.tables import saved_seconds
from aptp.report.wording import listed, number

AGREE = 0.01
"""Figures of one method and seed that two runs have are the same up to this share; what is timed may differ."""
EQUAL_COST = 0.03
"""Costs nearer to the budget than this share of it are equal to it."""
WEIGHTS = "parameters"
"""The unit of a budget that fewer sampling steps do not lower."""
TIMED = ("latency_ms", "time", "peak_memory_mb", "training_seconds", "payback")
"""Figures that differ from run to run, of which several are averaged."""


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

    def label(self, setting: Setting, method: Method) -> str:
        """A method's name; with several protocols also the letter of its own, and what that changes if one thing."""
        if not self.mixed:
            return method.name
        first = next(iter(self.protocols.values()))
        changed = named_differences(self.protocols[setting.letter], first) if method.kind != "dense" else []
        return f"{', '.join([method.name, *(changed if len(changed) == 1 else [])])} [{setting.letter}]"

    def _of(self, setting: Setting, method: Method) -> dict[int, Trial]:
        budget = None if method.kind == "dense" else setting.budget
        return self.trials.get((setting.letter, budget, method), {})


def gather(
    sources: Sequence[Source],
    failures: Sequence[Failure] = (),
    *,
    mixed: bool = False,
    reference: str | None = None,
    warnings: Sequence[str] = (),
) -> Comparison:
    """Put the rows of finished runs in their places.

    Raises:
        RequestError: if there is nothing to compare, runs follow several protocols and `mixed` does not allow it, or
            no method is called `reference`.
    """
    if not sources:
        failed = f"; {failures[0].name!r} failed: {failures[0].error}" if failures else ""
        raise RequestError(f"none of the runs is finished, so there is nothing to compare{failed}.")
    pruned = [(s, r, config_of(s.record, r)) for s in sources for r in _pruned(s.record)]
    if not pruned:
        raise RequestError(f"{sources[0].name!r} has no row of a pruned method, so there is nothing to compare.")
    protocols = [protocol_of(s.record, c) for s, _, c in pruned]
    if not mixed:
        first_of = {p: s.name for p, (s, _, _) in reversed(list(zip(protocols, pruned, strict=True)))}
        check_one(dict(reversed(first_of.items())))
    letters = lettered(protocols)
    naming = Naming(config for _, _, config in pruned)
    rows = []
    for (source, result, config), protocol in zip(pruned, protocols, strict=True):
        rows.append(_trial(source, result, naming.method(config), config, letters[protocol]))
    for source in sources:
        mine = dict.fromkeys(row.letter for row in rows if row.source is source)
        config = next((row.config for row in rows if row.source is source), {})
        dense = [r for r in source.record.results if r not in _pruned(source.record)]
        rows += [_trial(source, r, dense_method(r), config, letter) for letter in mine for r in dense]
    chosen = _reference({row.method for row in rows if row.method.kind != "dense"}, reference, rows)
    results = [result for source in sources for result in source.record.results]
    by_letter = {letter: protocol for protocol, letter in letters.items()}
    found = Comparison(
        list(sources), list(failures), by_letter, rows, naming, chosen, quality_measures(results), list(warnings)
    )
    _place(found)
    found.warnings += _unlike_machines(sources)
    return found


def _pruned(record: Record) -> list[Result]:
    return [r for r in record.results if r.name != "dense" and r.sampling_steps is None]


def _trial(source: Source, result: Result, method: Method, config: Flat, letter: str) -> Trial:
    record = source.record
    budget = float(config.get("budget.target") or (record.budget.target if record.budget else 1.0))
    figures = _figures(record, result)
    return Trial(source, result, method, config, letter, budget, int(record.config.get("seed", 0)), figures)


def _figures(record: Record, result: Result) -> dict[str, float]:
    """Every figure of a row by its key. `time` is a picture's share of the dense model's time in the same run."""
    dense = dense_of(record)
    found = {
        "cost": result.fraction,
        "macs": result.macs,
        "parameters": result.parameters,
        "latency_ms": result.latency_ms,
        "peak_memory_mb": result.peak_memory_mb,
        "teacher_error": result.teacher_error,
        "recovery_steps": float(result.training_steps),
        "search_steps": None if result.search_steps is None else float(result.search_steps),
        "training_seconds": result.training_seconds,
        **result.metrics,
    }
    if result.sampling_steps is not None and record.budget and record.budget.unit == WEIGHTS:
        del found["cost"]
    if dense and dense.latency_ms and result.sampling_steps is not None:
        found |= {"latency_ms": dense.latency_ms, "time": result.fraction}
    elif dense and dense.latency_ms and result.latency_ms:
        found["time"] = result.latency_ms / dense.latency_ms
    if result.training_seconds and (saved := saved_seconds(record, result)) and saved > 0:
        found["payback"] = result.training_seconds / saved
    if result is method_of(record) and len(record.experts) > 1:
        found |= {k: record.routing.get(k) for k in ("perplexity", "perplexity_without_bias", "nmi")}
    return {key: float(value) for key, value in found.items() if value is not None}


def _reference(methods: set[Method], wanted: str | None, rows: Sequence[Trial]) -> Method:
    """The method of that name; without one, the learned prompt router with transport, else the first there is."""
    ordered = [m for m in dict.fromkeys(row.method for row in rows) if m in methods]
    if wanted is not None:
        squeezed = wanted.replace(" ", "")
        named = [m for m in ordered if squeezed in (m.name.replace(" ", ""), m.full_name.replace(" ", ""))]
        if not named:
            raise unknown("method", wanted, [m.name for m in ordered])
        return named[0]
    contrastive = [m for m in ordered if dict(m.strategies).get("router") == "contrastive"]
    usual = [m for m in contrastive if dict(m.strategies)["balancer"] == "sinkhorn" and not m.settings]
    return [*usual, *contrastive, *(m for m in ordered if m.kind == "routed"), *ordered][0]


def _place(comparison: Comparison) -> None:
    """Count each method's seed once. The run that is the method's own goes before those it ran beside in."""
    places: dict[tuple[str, float | None, Method], dict[int, list[Trial]]] = {}
    for row in comparison.rows:
        budget = None if row.method.kind == "dense" else row.budget
        places.setdefault((row.letter, budget, row.method), {}).setdefault(row.seed, []).append(row)
    for place, by_seed in places.items():
        comparison.trials[place] = {}
        for seed, rows in by_seed.items():
            rows.sort(key=lambda row: not row.own)
            comparison.trials[place][seed] = _merged(rows)
            if said := _disagreement(rows):
                comparison.warnings.append(f"{place[2].name}, seed {seed}: {said}")


def _merged(rows: Sequence[Trial]) -> Trial:
    first = rows[0]
    figures = dict(first.figures)
    for key in TIMED:
        if known := [row.figures[key] for row in rows if key in row.figures]:
            figures[key] = fmean(known)
    return Trial(**{**vars(first), "figures": figures})


def _disagreement(rows: Sequence[Trial]) -> str | None:
    """In which figures the runs that hold the same row do not agree."""
    apart: dict[str, str] = {}
    for row in rows[1:]:
        for key in rows[0].figures.keys() & row.figures.keys() - {*TIMED, "nmi"}:
            mine, theirs = rows[0].figures[key], row.figures[key]
            if not math.isclose(mine, theirs, rel_tol=AGREE, abs_tol=1e-12):
                apart.setdefault(key, f"{key} is {number(mine)} and {number(theirs)} in {row.source.name!r}")
    if not apart:
        return None
    return (
        f"the runs that hold this row disagree, and {rows[0].source.name!r} counts: {listed(sorted(apart.values()))}."
    )


def _unlike_machines(sources: Sequence[Source]) -> list[str]:
    keys = [tuple(str(s.record.hardware.get(k)) for k in ("processor", "cores", "gpu")) for s in sources]
    if len(machines := Counter(keys)) < 2:
        return []
    return [f"the runs come from {len(machines)} kinds of machine: compare times only as shares of dense in one run."]


def differences_of(protocols: dict[str, Protocol]) -> list[tuple[str, dict[str, str]]]:
    """In what the protocols differ: names, and the value for each letter."""
    tables = {letter: dict(protocol) for letter, protocol in protocols.items()}
    keys = differing(list(protocols.values()))
    return [(key, {letter: table.get(key, "–") for letter, table in tables.items()}) for key in keys]
