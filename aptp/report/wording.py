"""Numbers and conclusions in words. Every sentence is derived from the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath

from aptp.core.record import Record, Result
from aptp.report.measures import LEVEL, Measure, dense_of, method_of, pruned_of, quality_measures

NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """To `digits` significant places, without an exponent where that is short."""
    if value is None:
        return NOTHING
    if not value or not math.isfinite(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 6:
        return f"{value:,.{max(0, digits - 1 - size)}f}"
    return f"{value:.{digits - 1}e}"


def signed(value: float | None, digits: int = 3) -> str:
    """As `number`, with its sign."""
    if value is None:
        return NOTHING
    return number(value, digits) if not value else f"{'−' if value < 0 else '+'}{number(abs(value), digits)}"


def amount(value: float | None) -> str:
    """With a unit prefix: 262 M, 90.5 G."""
    if value is None:
        return NOTHING
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size)} {prefix}"
    return number(value)


def percent(share: float | None, places: int = 1) -> str:
    """A share in percent."""
    return NOTHING if share is None else f"{100 * share:.{places}f}%"


def change(value: float, base: float) -> str:
    """−26% or +3%, against `base`."""
    share = value / base - 1
    return f"{'−' if share < 0 else '+'}{abs(100 * share):.0f}%"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(text: str) -> str:
    """A time of the record as people write it."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def plural(count: int, word: str) -> str:
    """`1 expert`, `4 experts`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def alike(*values: float) -> list[str]:
    """Signed values, all to as many places as the largest takes for three digits."""
    size = max(map(abs, values))
    places = max(0, 2 - math.floor(math.log10(size))) if size else 0
    return [f"{'−' if value < 0 else '+'}{abs(value):,.{places}f}" for value in values]


def reach(low: float | None, high: float | None) -> str:
    """The ends of an interval of differences."""
    return NOTHING if low is None or high is None else " to ".join(alike(low, high))


def headline(record: Record) -> str:
    """What was pruned, and to what budget."""
    model = PurePath(str(record.config.get("model", "the model"))).name
    if record.budget is None:
        return f"Pruning {model}"
    return f"Pruning {model} to {percent(record.budget.target, 0)} of its {record.budget.unit}"


def conclusion(record: Record) -> list[str]:
    """What it costs, and how it compares: one sentence each; fewer where the run has not got that far."""
    method, dense = method_of(record), dense_of(record)
    if method is None:
        return ["Nothing has been evaluated yet."]
    return [_cost(record, method, dense), *_comparison(method, dense, pruned_of(record)[1:])]


def protocol(record: Record) -> str | None:
    """Whose the steps of recovery were, and what they trained, if the record says so."""
    options = record.config.get("recover") or {}
    if "per" not in options:
        return None
    if options["per"] == "expert":
        said = (
            f"Each expert was given {plural(options['steps'], 'step')}, so a method with more experts trained longer; "
            "the table has the totals."
        )
    else:
        said = f"Each method was given {plural(options['steps'], 'step')} in all, shared by its experts."
    if rank := options.get("rank"):
        said += f" Only changes of rank {rank} were trained."
    return said


def _cost(record: Record, method: Result, dense: Result | None) -> str:
    unit = record.budget.unit if record.budget else "cost"
    target = f" (target {percent(record.budget.target, 0)})" if record.budget else ""
    who = "one model" if len(record.experts) == 1 else plural(len(record.experts), "expert")
    text = f"{method.name} serves the prompts with {who} at {percent(method.fraction)} of the dense {unit}{target}"
    if dense and dense.latency_ms and method.latency_ms:
        less = method.latency_ms <= dense.latency_ms
        share = abs(100 * (method.latency_ms / dense.latency_ms - 1))
        text += f"; as measured, a call takes {share:.0f}% {'less' if less else 'more'} time"
    return text + "."


def _comparison(method: Result, dense: Result | None, rivals: Sequence[Result]) -> list[str]:
    others = rivals or ([dense] if dense else [])
    verdicts: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for measure in quality_measures([method, *others]):
        if not rivals and measure.key == "teacher_error":
            continue
        best = measure.best(others)[:1] or [other for other in others if measure.of(other) is not None][:1]
        if best and (verdict := _verdict(measure, method, best[0])):
            mine, theirs = number(measure.of(method)), number(measure.of(best[0]))
            named = f"{best[0].name} " if len(others) > 1 else ""
            verdicts[verdict].append(f"{measure.label} ({mine} against {named}{theirs})")
    said = [f"{word} on {listed(names)}" for word, names in verdicts.items() if names]
    if not said:
        return []
    whom = listed([r.name for r in rivals]) if rivals else "the dense model, the only one run beside it"
    cost = f" at {listed([percent(r.fraction) for r in rivals])}" if rivals else ""
    return [f"Beside {whom}{cost}, it is {'; '.join(said)}."]


def _verdict(measure: Measure, method: Result, rival: Result) -> str | None:
    mine, theirs = measure.of(method), measure.of(rival)
    if measure.less is None or mine is None or theirs is None or not math.isfinite(mine + theirs):
        return None
    if math.isclose(mine, theirs, rel_tol=LEVEL):
        return "level"
    return "ahead" if (mine < theirs) == measure.less else "behind"
