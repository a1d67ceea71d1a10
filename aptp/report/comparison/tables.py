"""The tables of a comparison, as rows of ready texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aptp.core.record import Expert
from aptp.report.comparison.intervals import Interval, interval, standing
from aptp.report.comparison.methods import Method
from aptp.report.comparison.phrases import plus_minus, setting_title, unit_of
from aptp.report.comparison.protocols import differences_of
from aptp.report.comparison.trials import Comparison, Setting, Trial
from aptp.report.comparison.verdict import FEWER, ROUTED, SINGLE, Verdict
from aptp.report.measures import Measure
from aptp.report.tables import LATENCY_BATCH, Cell, Head
from aptp.report.wording import NOTHING, alike, amount, duration, number, percent, plural

COST = Measure("cost", "cost", "of dense", True, lambda result: result.fraction)
TIME = Measure("time", "time", "of dense, same run", True, lambda result: None)
"""Known only beside the dense row of its run, so to trials and not to results."""
SORTS = (SINGLE, ROUTED, FEWER)
"""Of what the short table names the best."""


@dataclass(frozen=True)
class Grid:
    """A table: its title, heads, and rows whose first cell names them."""

    title: str
    heads: list[Head]
    rows: list[list[Cell]]


def short_table(comparison: Comparison, verdicts: list[Verdict]) -> Grid:
    """One row a setting: the best of each sort, and what to use."""
    label = comparison.primary.label if comparison.primary else "figure"
    heads = [
        Head("at"),
        Head("use"),
        *(Head(f"best {sort}", notes=[label]) for sort in SORTS),
    ]
    heads.append(Head("single − routed", notes=["95% interval"]))
    rows = []
    for verdict in verdicts:
        by_sort = {candidate.what: candidate for candidate in verdict.candidates}
        cells = []
        for sort in SORTS:
            found = by_sort.get(sort)
            cells.append(Cell(found.figure if found else NOTHING, found.name if found else ""))
        rows.append([Cell(verdict.title), Cell(verdict.choice), *cells, Cell(verdict.difference)])
    return Grid("In short", heads, rows)


def core_table(comparison: Comparison, setting: Setting) -> Grid:
    """Every figure of every method of a setting; the best mean of the pruned at its budget is marked."""
    measures = comparison.measures
    heads = [
        Head("method"),
        Head("seeds"),
        Head("cost", notes=[f"of dense {unit_of(comparison)}"]),
        Head("MACs", notes=["a call"]),
        Head("latency", "↓", [f"{LATENCY_BATCH} inputs", "of dense, same run"]),
        *(_head(comparison, setting, measure) for measure in measures),
    ]
    methods = ranked(comparison, setting)
    best = {m.key: _best(comparison, setting, methods, m) for m in [TIME, *measures]}
    rows = []
    for method in methods:
        time = comparison.mean(setting, method, "time")
        cost = comparison.interval(setting, method, "cost")
        off = method.kind != "dense" and not comparison.equal_cost(setting, method)
        rows.append(
            [
                Cell(comparison.label(setting, method), _what(comparison, setting, method)),
                Cell(str(len(comparison.seeds(setting, method)))),
                Cell(percent(cost.mean if cost else None), _cost_note(method, cost, off)),
                Cell(amount(comparison.mean(setting, method, "macs"))),
                Cell(
                    _unit(number(comparison.mean(setting, method, "latency_ms")), " ms"),
                    "" if method.kind == "dense" else percent(time, 0),
                    method in best[TIME.key],
                ),
                *(_figure(comparison, setting, method, m, method in best[m.key]) for m in measures),
            ]
        )
    return Grid(setting_title(comparison, setting), heads, rows)


def _unit(text: str, unit: str) -> str:
    return text if text == NOTHING else text + unit


def _cost_note(method: Method, cost: Interval | None, off: bool) -> str:
    if method.kind == "dense":
        return "of a picture" if method.base != "dense" else ""
    spread = f"± {percent(cost.half)}" if cost and cost.half is not None else ""
    return " · ".join(part for part in (spread, "not the budget" if off else "") if part)


def _what(comparison: Comparison, setting: Setting, method: Method) -> str:
    if method.kind == "dense":
        return ""
    said = "single model"
    if method.kind == "routed":
        counts = {len(t.source.record.experts) for t in comparison.runs(setting, method)}
        said = f"routed, {' or '.join(map(str, sorted(counts)))} experts"
    return f"{said}, reference" if method == comparison.reference else said


def ranked(comparison: Comparison, setting: Setting) -> list[Method]:
    """The dense model first, then the pruned, from the best of the deciding measure."""
    methods = comparison.methods(setting)
    if (measure := comparison.primary) is None:
        return methods
    sign = 1 if measure.less else -1

    def place(method: Method) -> tuple[bool, float]:
        value = comparison.mean(setting, method, measure.key)
        return method.kind != "dense", 0.0 if method.kind == "dense" else float(
            "inf"
        ) if value is None else sign * value

    return sorted(methods, key=place)


def _best(comparison: Comparison, setting: Setting, methods: list[Method], measure: Measure) -> list[Method]:
    """Those with the best mean, of the pruned at the budget that have most seeds."""
    pruned = [m for m in methods if m.kind != "dense" and comparison.equal_cost(setting, m)]
    known = comparison.complete(setting, pruned, measure.key)
    if measure.less is None or len(known) < 2:
        return []
    best = (min if measure.less else max)(known.values())
    return [method for method, value in known.items() if value == best]


def _head(comparison: Comparison, setting: Setting, measure: Measure) -> Head:
    notes = [measure.detail] if measure.detail else []
    for end in ("floor", "real"):
        if found := _of_real(comparison, setting, f"{measure.key}_{end}"):
            notes.append(f"{end}: {plus_minus(found)}")
    return Head(measure.label, measure.arrow, notes)


def _of_real(comparison: Comparison, setting: Setting, key: str) -> Interval | None:
    """A figure of real pictures, which is the same for all methods of a seed."""
    by_seed = {s: v for m in comparison.methods(setting) for s, v in comparison.series(setting, m, key).items()}
    return interval(by_seed.values())


def _figure(comparison: Comparison, setting: Setting, method: Method, measure: Measure, best: bool) -> Cell:
    found = comparison.interval(setting, method, measure.key)
    if found is None:
        return Cell(NOTHING)
    half = comparison.mean(setting, method, f"{measure.key}_half")
    notes = [f"± {number(found.half, 2)}"] if found.half is not None else []
    notes += [f"half {number(half)}"] if half is not None else []
    return Cell(number(found.mean), " · ".join(notes), best)


def differences_table(comparison: Comparison, setting: Setting, methods: list[Method] | None = None) -> Grid | None:
    """Each method against the reference, seed by seed; `None` where there is nobody to compare with it."""
    reference = comparison.reference
    others = [m for m in (methods or ranked(comparison, setting)) if m != reference]
    if not others or not comparison.seeds(setting, reference):
        return None
    measures = [COST, TIME, *comparison.measures]
    heads = [Head("method"), Head("seeds", notes=["in common"])]
    heads += [Head(m.label, m.arrow, [m.detail] if m in (COST, TIME) else []) for m in measures]
    rows = []
    for method in others:
        common = set(comparison.seeds(setting, reference)) & set(comparison.seeds(setting, method))
        cells = [_difference(comparison, setting, method, m) for m in measures]
        rows.append([Cell(comparison.label(setting, method)), Cell(str(len(common))), *cells])
    return Grid(setting_title(comparison, setting), heads, rows)


def _difference(comparison: Comparison, setting: Setting, method: Method, measure: Measure) -> Cell:
    apart = comparison.difference(setting, method, comparison.reference, measure.key)
    if apart is None or (method.kind == "dense" and measure.key == "teacher_error"):
        return Cell(NOTHING)
    texts = _points if measure in (COST, TIME) else alike
    if apart.low is None or apart.high is None:
        return Cell(texts(apart.mean)[0], plural(apart.n, "seed"))
    mean, low, high = texts(apart.mean, apart.low, apart.high)
    found = "open" if measure.less is None else standing(apart, measure.less)
    return Cell(mean if found == "open" else f"{mean} {found}", f"{low} to {high}", found != "open")


def _points(*shares: float) -> list[str]:
    """Differences of shares, in percent of dense."""
    return [f"{'−' if share < 0 else '+'}{abs(100 * share):.1f}%" for share in shares]


def ablation_table(comparison: Comparison, setting: Setting) -> Grid | None:
    """Methods that differ from the reference in one setting: what changes when that setting does."""
    reference, measures = comparison.reference, comparison.measures
    single = [
        (changed[0], m)
        for m in comparison.methods(setting)
        if m.strategies and dict(m.strategies).keys() == dict(reference.strategies).keys()
        if len(changed := m.differences(reference)) == 1
    ]
    if not single or not comparison.seeds(setting, reference):
        return None
    heads = [Head("setting"), Head("seeds"), Head("cost"), *(Head(m.label, m.arrow, ["difference"]) for m in measures)]
    own = [_figure(comparison, setting, reference, m, False) for m in measures]
    cost = Cell(percent(comparison.mean(setting, reference, "cost")))
    rows = [[Cell(reference.name, "itself"), Cell(str(len(comparison.seeds(setting, reference)))), cost, *own]]
    for difference, method in single:
        cells = [_difference(comparison, setting, method, m) for m in measures]
        cost = Cell(percent(comparison.mean(setting, method, "cost")))
        rows.append([Cell(difference, method.name), Cell(str(len(comparison.seeds(setting, method)))), cost, *cells])
    return Grid(setting_title(comparison, setting), heads, rows)


def experts_table(comparison: Comparison, setting: Setting) -> Grid | None:
    """How busy and how costly the experts of each routed method are; those of each seed in order of their cost."""
    routed = [m for m in comparison.methods(setting, "routed") if any(t.own for t in comparison.runs(setting, m))]
    if not routed:
        return None
    heads = [
        Head("method"),
        Head("cost of experts", notes=["cheapest to costliest", "mean over seeds"]),
        Head("share of prompts", notes=["in the same order"]),
        Head("experts in use", notes=["perplexity"]),
        Head("by scores alone", notes=["without serving bias"]),
        Head("mutual information", notes=["with the kinds"]),
    ]
    rows = []
    for method in routed:
        ordered = [by_cost(t.source.record.experts) for t in comparison.runs(setting, method) if t.own]
        places = list(zip(*ordered, strict=False))
        costs = [interval(e.fraction for e in place) for place in places]
        loads = [interval(load_of(e) for e in place) for place in places]
        figures = [
            comparison.interval(setting, method, key) for key in ("perplexity", "perplexity_without_bias", "nmi")
        ]
        rows.append(
            [
                Cell(comparison.label(setting, method)),
                Cell(_few([percent(cost.mean, 0) for cost in costs if cost])),
                Cell(_few([percent(load.mean, 0) for load in loads if load])),
                *(Cell(plus_minus(each) if each else NOTHING) for each in figures),
            ]
        )
    return Grid(setting_title(comparison, setting), heads, rows)


def _few(texts: list[str]) -> str:
    """All, or the first and the last of many."""
    return " · ".join(texts if len(texts) <= 5 else [*texts[:2], "…", *texts[-2:]])


def by_cost(experts: Sequence[Expert]) -> list[Expert]:
    """Experts from the cheapest to the costliest."""
    return sorted(experts, key=lambda expert: (expert.fraction, expert.index))


def load_of(expert: Expert) -> float:
    """The share of the held-out prompts that an expert serves; of the training prompts, where that is not known."""
    return expert.training_load if expert.validation_load is None else expert.validation_load


def training_table(comparison: Comparison, setting: Setting) -> Grid:
    """What each method takes to make, and to keep."""
    heads = [
        Head("method"),
        Head("search", notes=["steps"]),
        Head("recovery", notes=["steps"]),
        Head("both", notes=["time"]),
        Head("paid back after", notes=["pictures, in time saved"]),
        Head("experts on disk"),
    ]
    rows = []
    for method in comparison.methods(setting):
        if method.kind == "dense":
            continue
        steps = [comparison.mean(setting, method, key) for key in ("search_steps", "recovery_steps")]
        seconds = comparison.interval(setting, method, "training_seconds")
        pictures = comparison.interval(setting, method, "payback")
        complete = pictures and pictures.n == len(comparison.seeds(setting, method))
        loss = "not in every seed" if pictures else "no time saved"
        size = interval(d for t in comparison.runs(setting, method) if (d := _disk_mb(t)) is not None)
        rows.append(
            [
                Cell(comparison.label(setting, method)),
                *(Cell(NOTHING if n is None else f"{n:,.0f}") for n in steps),
                Cell(duration(seconds.mean), f"± {duration(seconds.half)}" if seconds.half is not None else "")
                if seconds
                else Cell(NOTHING),
                Cell(f"{pictures.mean:,.0f}" if pictures and complete else NOTHING, "" if complete else loss),
                Cell(f"{size.mean:.1f} MB" if size else NOTHING, "" if size else "no run folder"),
            ]
        )
    return Grid(setting_title(comparison, setting), heads, rows)


def _disk_mb(trial: Trial) -> float | None:
    """Size of a trial's experts (10⁶ bytes), where its record has it or its run directory is at hand."""
    if trial.result.disk_mb is not None:
        return trial.result.disk_mb
    source = trial.source
    place = source.path("experts" if trial.own else f"baselines/{trial.result.name}/experts")
    if source.folder is None or place is None:
        return None
    home = source.folder.resolve()
    files = [f for f in place.rglob("*") if f.is_file() and f.resolve().is_relative_to(home)]
    return sum(file.stat().st_size for file in files) / 1e6 if files else None


def protocols_table(comparison: Comparison) -> Grid | None:
    """What each letter means; `None` where there is one protocol."""
    if not comparison.mixed:
        return None
    letters = list(comparison.protocols)
    rows = [[Cell(key), *(Cell(values[x]) for x in letters)] for key, values in differences_of(comparison.protocols)]
    return Grid("Protocols", [Head("what differs"), *map(Head, letters)], rows)
