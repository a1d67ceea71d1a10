"""The tables of the page, as rows of ready texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aptp.core.record import Record, Result
from aptp.report.measures import DISK, LATENCY, MEMORY, Measure, dense_of, method_of, pruned_of, quality_measures
from aptp.report.wording import amount, change, duration, number, percent, plural

LATENCY_BATCH = 8
"""Inputs of the call whose latency is measured."""


@dataclass(frozen=True)
class Head:
    """The head of a column: its name, the direction that is better, and remarks below."""

    label: str
    arrow: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """A figure, what stands below it in small, and whether it is the best of the pruned."""

    text: str
    note: str = ""
    best: bool = False


def methods_table(record: Record) -> tuple[list[Head], list[list[Cell]]]:
    """Everything about every method. The first cell of a row is the method's name."""
    measures = [*_measured(record), *quality_measures(record.results)]
    unit = record.budget.unit if record.budget else "cost"
    heads = [
        Head("method"),
        Head("cost", notes=[f"of dense {unit}"]),
        Head("MACs", notes=["a call"]),
        Head("parameters"),
        *(_head(measure, record.results) for measure in measures),
        Head("training", notes=["recovery steps", "search + recovery"]),
    ]
    pruned = pruned_of(record)
    best = {measure.key: measure.best(pruned) for measure in measures}
    rows = []
    for result in record.results:
        figures = [_figure(m, result, dense_of(record), best[m.key], record.results) for m in measures]
        trained = result in pruned
        rows.append(
            [
                Cell(result.name),
                Cell(percent(result.fraction), "of a picture" if result.sampling_steps else ""),
                Cell(amount(result.macs)),
                Cell(amount(result.parameters)),
                *figures,
                Cell(f"{result.training_steps:,}", duration(result.training_seconds)) if trained else Cell("–"),
            ]
        )
    return heads, rows


def _measured(record: Record) -> list[Measure]:
    return [m for m in (LATENCY, MEMORY, DISK) if any(m.of(result) is not None for result in record.results)]


def _head(measure: Measure, results: list[Result]) -> Head:
    notes = [measure.detail] if measure.detail else []
    for end, said in (("floor", "floor"), ("real", "real")):
        if (value := measure.shared(results, end)) is not None:
            notes.append(f"{said}: {number(value)}")
    return Head(measure.label, measure.arrow, notes)


def _figure(measure: Measure, result: Result, dense: Result | None, best: list[Result], results: list[Result]) -> Cell:
    value, notes = measure.of(result), []
    text = number(value)
    if value is not None and measure in (LATENCY, MEMORY, DISK):
        text += " ms" if measure is LATENCY else " MB"
        base = measure.of(dense) if dense else None
        if base and result is not dense:
            notes.append(change(value, base))
    for end in ("half", "floor", "real"):
        own = measure.companion(result, end)
        if own is not None and (end == "half" or measure.shared(results, end) is None):
            notes.append(f"{end} {number(own)}")
    return Cell(text, " · ".join(notes), result in best)


def experts_table(record: Record) -> list[dict[str, Any]]:
    """One row an expert, in order."""
    examples = record.routing.get("examples", {})
    return [
        {
            "index": expert.index,
            "cost": percent(expert.fraction),
            "width": f"{100 * min(1.0, max(0.0, expert.fraction)):.1f}%",
            "training": percent(expert.training_load),
            "validation": percent(expert.validation_load),
            "parameters": amount(expert.parameters),
            "examples": examples.get(str(expert.index), [])[:4],
        }
        for expert in record.experts
    ]


def key_figures(record: Record) -> list[tuple[str, str, str]]:
    """Name, value and what it is read against, of the figures that matter most."""
    method, dense = method_of(record), dense_of(record)
    if method is None:
        return []
    figures = [("cost on held-out prompts", percent(method.fraction), "of dense")]
    if record.budget:
        figures = [(f"{record.budget.unit} on held-out prompts", percent(method.fraction), _target(record))]
    if dense and dense.latency_ms and method.latency_ms:
        figures.append(("time of a call", change(method.latency_ms, dense.latency_ms), "against dense"))
    if dense and dense.peak_memory_mb and method.peak_memory_mb:
        figures.append(("peak memory", change(method.peak_memory_mb, dense.peak_memory_mb), "against dense"))
    count = plural(len(record.experts), "expert")
    if record.experts and method.disk_mb:
        of_dense = f"dense: {number(dense.disk_mb)} MB" if dense else ""
        figures.append((f"{count} on disk", f"{number(method.disk_mb)} MB", of_dense))
    elif record.experts:
        in_all = sum(expert.parameters for expert in record.experts)
        of_dense = f"dense: {amount(dense.parameters)}" if dense else ""
        figures.append((f"parameters of {count} in all", amount(in_all), of_dense))
    return figures


def _target(record: Record) -> str:
    return f"target {percent(record.budget.target, 0)}" if record.budget else ""


def payback(record: Record) -> str | None:
    """After how many pictures search and recovery are paid for by the time saved; `None` where that is not known."""
    method = method_of(record)
    saved = saved_seconds(record, method) if method else None
    if method is None or saved is None:
        return None
    steps = record.config["evaluate"]["steps"]
    said = f"A picture of {steps} sampling steps takes {plural(_calls(record), 'denoiser call')}"
    if saved <= 0:
        return f"{said}; the pruned calls were no faster on this machine, so nothing is paid back in time."
    pictures = method.training_seconds / saved
    return (
        f"{said}, which saves {number(saved)} s on this machine; the {duration(method.training_seconds)} of search and "
        f"recovery are paid back after about {plural(round(pictures), 'picture')}."
    )


def saved_seconds(record: Record, result: Result) -> float | None:
    """Time that a method's calls for one picture take less than the dense model's; `None` where that is not known."""
    dense = dense_of(record)
    if not (dense and dense.latency_ms and result.latency_ms and "steps" in record.config.get("evaluate", {})):
        return None
    return _calls(record) * (dense.latency_ms - result.latency_ms) / LATENCY_BATCH / 1000


def _calls(record: Record) -> int:
    """Calls of the denoiser for a picture."""
    options = record.config["evaluate"]
    return options["steps"] * (2 if options.get("guidance", 0) > 1 else 1)
