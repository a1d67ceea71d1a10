"""The rows of all records in their places: protocol, budget, method, seed. What several runs hold counts once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from aptp.core.errors import RequestError, unknown
from aptp.core.record import Record, Result
from aptp.report.comparison.methods import Flat, Method, Naming, config_of, dense_method
from aptp.report.comparison.protocols import Protocol, check_one, lettered, of_training, protocol_of
from aptp.report.comparison.sources import Failure, Source
from aptp.report.comparison.trials import Comparison, Trial
from aptp.report.measures import dense_of, method_of, pruned_of, quality_measures
from aptp.report.tables import saved_seconds
from aptp.report.wording import listed, number, plural

AGREE = 0.01
"""Figures of one method and seed that two runs have are the same up to this share; what is timed may differ."""
WEIGHTS = "parameters"
"""The unit of a budget that fewer sampling steps do not lower."""
TIMED = ("latency_ms", "time", "peak_memory_mb", "training_seconds", "payback")
"""Figures that differ from run to run, of which several are averaged."""


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
    pruned = [(s, r, config_of(s.record, r)) for s in sources for r in pruned_of(s.record)]
    if not pruned:
        raise RequestError(f"{sources[0].name!r} has no row of a pruned method, so there is nothing to compare.")
    protocols = [protocol_of(s.record, c) for s, _, c in pruned]
    if not mixed:
        runs: dict[Protocol, str] = {}
        for protocol, (source, _, _) in zip(protocols, pruned, strict=True):
            runs.setdefault(protocol, source.name)
        check_one(runs)
    letters = lettered(protocols)
    naming = Naming(config for _, _, config in pruned)
    rows = []
    for (source, result, config), protocol in zip(pruned, protocols, strict=True):
        rows.append(_trial(source, result, naming.method(config), config, letters[protocol]))
    chosen = _reference(list(dict.fromkeys(row.method for row in rows)), reference)
    rows += _dense_rows(rows, letters)
    results = [result for source in sources for result in source.record.results]
    found = Comparison(
        list(sources),
        list(failures),
        {letter: protocol for protocol, letter in letters.items()},
        rows,
        naming,
        chosen,
        quality_measures(results),
        [*warnings, *_unlike_machines(sources), *_lost(rows)],
    )
    _place(found)
    return found


def _dense_rows(rows: Sequence[Trial], letters: Mapping[Protocol, str]) -> list[Trial]:
    """The dense rows of every run, lent to protocols that differ in training alone where these have none."""
    drawn = {
        letter: tuple(item for item in protocol if not of_training(item[0])) for protocol, letter in letters.items()
    }
    of_run = {(row.source.name, row.letter): row for row in rows}
    dense = [
        _trial(row.source, result, dense_method(result), row.config, row.letter)
        for row in of_run.values()
        for result in row.source.record.results
        if result not in pruned_of(row.source.record)
    ]
    own = {(row.letter, row.method, row.seed) for row in dense}
    lent = [
        replace(row, letter=letter)
        for row in dense
        for letter in drawn
        if drawn[letter] == drawn[row.letter] and (letter, row.method, row.seed) not in own
    ]
    return dense + lent


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
    return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}


def _reference(methods: Sequence[Method], wanted: str | None) -> Method:
    """The method of that name; without one, the learned prompt router with transport, else the first there is."""
    if wanted is not None:
        squeezed = wanted.replace(" ", "")
        named = [m for m in methods if squeezed in (m.name.replace(" ", ""), m.full_name.replace(" ", ""))]
        if not named:
            raise unknown("method", wanted, [m.name for m in methods])
        return named[0]
    contrastive = [m for m in methods if dict(m.strategies).get("router") == "contrastive"]
    usual = [m for m in contrastive if dict(m.strategies)["balancer"] == "sinkhorn" and not m.settings]
    return [*usual, *contrastive, *(m for m in methods if m.kind == "routed"), *methods][0]


def _place(comparison: Comparison) -> None:
    """Count each method's seed once. The run that is the method's own goes before those it ran beside in."""
    places: dict[tuple[str, float | None, Method], dict[int, list[Trial]]] = {}
    for row in comparison.rows:
        budget = None if row.method.kind == "dense" else row.budget
        places.setdefault((row.letter, budget, row.method), {}).setdefault(row.seed, []).append(row)
    for place, by_seed in places.items():
        for rows in by_seed.values():
            rows.sort(key=lambda row: not row.own)
        comparison.trials[place] = {seed: _merged(rows) for seed, rows in by_seed.items()}
        if told := {seed: said for seed, rows in by_seed.items() if (said := _disagreement(rows))}:
            seed, said = next(iter(told.items()))
            more = f" So it is with {plural(len(told) - 1, 'other seed')}." if len(told) > 1 else ""
            comparison.warnings.append(f"{place[2].name}, seed {seed}: {said}{more}")


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


def _lost(rows: Sequence[Trial]) -> list[str]:
    """Figures that came out as no number, which count as not measured."""
    return [
        f"{row.method.name}, seed {row.seed}: {key} is {value} in {row.source.name!r}, and counts as not measured."
        for row in rows
        for key, value in row.result.metrics.items()
        if not math.isfinite(value)
    ]


def _unlike_machines(sources: Sequence[Source]) -> list[str]:
    machines = {tuple(str(s.record.hardware.get(k)) for k in ("processor", "cores", "gpu")) for s in sources}
    if len(machines) < 2:
        return []
    return [f"the runs come from {len(machines)} kinds of machine: compare times only as shares of dense in one run."]
