"""Which method to use, in words: what the figures of one setting say, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from aptp.report.comparison.intervals import interval, paired, standing
from aptp.report.comparison.methods import Method
from aptp.report.comparison.phrases import plus_minus, setting_title
from aptp.report.comparison.trials import Comparison, Setting
from aptp.report.measures import Measure
from aptp.report.wording import NOTHING, listed, number, percent, plural, reach

FEWER, SINGLE, ROUTED = "dense, fewer steps", "single model", "routed method"
"""The sorts of candidates, from the simplest."""
FEW_SEEDS = 5
"""Under this many seeds an interval is called wide."""


@dataclass(frozen=True)
class Candidate:
    """A way to draw pictures at a budget, with the deciding figure by seed."""

    name: str
    what: str
    simple: str
    """Why it is simpler than the candidates after it."""
    series: dict[int, float]

    @property
    def mean(self) -> float:
        return sum(self.series.values()) / len(self.series)

    @property
    def figure(self) -> str:
        found = interval(self.series.values())
        return NOTHING if found is None else plus_minus(found)


@dataclass
class Verdict:
    """What one setting says. `advice` is one sentence, `choice` its gist; `reasons` are sentences with the figures."""

    setting: Setting
    title: str
    choice: str
    advice: str
    reasons: list[str] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    difference: str = NOTHING
    """Best single model against best routed method."""


def verdicts(comparison: Comparison) -> list[Verdict]:
    """One for each setting."""
    return [verdict(comparison, setting) for setting in comparison.settings]


def verdict(comparison: Comparison, setting: Setting) -> Verdict:
    """Of the best single model, the best routed method and the dense model with fewer steps, which one to use.

    Best is the best mean of the deciding measure among methods at the budget that were run with the most seeds. A
    method is called better than another only where their paired interval excludes 0.
    """
    title, measure = setting_title(comparison, setting), comparison.primary
    if measure is None:
        return Verdict(setting, title, "nothing measured", "No figure was measured whose direction is known.")
    fewer = dense_at(comparison, setting, measure.key)
    single = _best(comparison, setting, "single", measure)
    routed = _best(comparison, setting, "routed", measure)
    candidates = []
    if fewer:
        simple = "nothing is pruned or trained"
        candidates.append(Candidate("the dense model with fewer steps", FEWER, simple, fewer))
    for method, what, simple in (
        (single, SINGLE, "one model, and no router"),
        (routed, ROUTED, "nothing among these is simpler"),
    ):
        if method:
            series = comparison.series(setting, method, measure.key)
            candidates.append(Candidate(method.name, what, simple, series))
    if not candidates:
        nobody = f"No method at this cost has a {measure.label}."
        return Verdict(setting, title, "nothing at this cost", nobody, _left_out(comparison, setting, measure))
    steps = _steps(comparison, setting)
    found = Verdict(setting, title, "", "", candidates=candidates)
    found.choice, found.advice = _advice(candidates, measure)
    found.reasons = [*_standings(candidates, measure, steps), *_others(comparison, setting, single, routed, measure)]
    found.reasons += _left_out(comparison, setting, measure)
    if single and routed and (apart := comparison.difference(setting, single, routed, measure.key)):
        found.difference = f"{reach(apart.low, apart.high)}" if apart.half is not None else "one seed"
    return found


def dense_at(comparison: Comparison, setting: Setting, key: str) -> dict[int, float]:
    """What the dense model gets, by seed, with as few steps as cost the budget, straight lines between those measured.

    Empty where the budget is under the fewest steps that were measured.
    """
    curves: dict[int, list[tuple[float, float]]] = {}
    for method in comparison.methods(setting, "dense"):
        costs = comparison.series(setting, method, "cost")
        figures = comparison.series(setting, method, key)
        for seed in costs.keys() & figures.keys():
            curves.setdefault(seed, []).append((costs[seed], figures[seed]))
    found = {}
    for seed, points in curves.items():
        points.sort()
        if points[0][0] <= setting.budget and len(points) > 1:
            found[seed] = float(np.interp(setting.budget, [x for x, _ in points], [y for _, y in points]))
    return found


def _steps(comparison: Comparison, setting: Setting) -> str:
    """How many of its sampling steps the dense model may take at the budget."""
    steps = next((t.source.record.config.get("evaluate", {}).get("steps") for t in comparison.rows), None)
    return f"{number(setting.budget * steps, 2)} of its {steps}" if steps else "fewer"


def _best(comparison: Comparison, setting: Setting, kind: str, measure: Measure) -> Method | None:
    known = [
        m
        for m in comparison.methods(setting, kind)
        if comparison.equal_cost(setting, m)
        and len(comparison.series(setting, m, measure.key)) == _most(comparison, setting)
    ]
    means = {m: comparison.mean(setting, m, measure.key) for m in known}
    found = [(value, m) for m, value in means.items() if value is not None]
    return (min if measure.less else max)(found, key=lambda pair: pair[0])[1] if found else None


def _most(comparison: Comparison, setting: Setting) -> int:
    """The most seeds that a pruned method of the setting has."""
    return max(len(comparison.seeds(setting, m)) for m in comparison.methods(setting) if m.kind != "dense")


def _advice(candidates: Sequence[Candidate], measure: Measure) -> tuple[str, str]:
    best = (min if measure.less else max)(candidates, key=lambda c: c.mean)
    others = [c for c in candidates if c is not best]
    seeds = len(best.series)
    if not others:
        return best.name, f"Use {best.name}: nothing else was measured at this cost ({measure.label} {best.figure})."
    if seeds < 2:
        return (
            f"{best.name} (one seed)",
            f"{_capital(best.name)} has the best {measure.label}, {best.figure}, with the only seed there is: a "
            "direction, not a result.",
        )
    gaps = {c.name: paired(best.series, c.series) for c in others}
    open_ones = [c for c in others if not ((g := gaps[c.name]) and standing(g, bool(measure.less)) == "better")]
    few = (
        f" {_capital(plural(seeds, 'seed'))} only: more may settle what is open."
        if seeds < FEW_SEEDS and open_ones
        else ""
    )
    if not open_ones:
        shown = f"and it is ahead of {listed([c.name for c in others])} by intervals that exclude 0"
        return best.name, f"Use {best.name}: it has the best {measure.label}, {best.figure}, {shown}."
    simplest = next(c for c in candidates if c is best or c in open_ones)
    if simplest is best:
        return best.name, (
            f"Use {best.name}: it has the best {measure.label}, {best.figure}, and is the simplest ({best.simple}), "
            f"though its lead on {listed([c.name for c in open_ones])} is not shown.{few}"
        )
    gap = gaps[simplest.name]
    said = f" ({reach(gap.low, gap.high)})" if gap and gap.half is not None else ""
    return f"open: {best.name} or {simplest.name}", (
        f"Not settled: {best.name} has the best {measure.label}, {best.figure}, but the interval of its difference to "
        f"{simplest.name}{said} contains 0. As long as that is so, {simplest.name} is the choice that needs less: "
        f"{simplest.simple}.{few}"
    )


def _standings(candidates: Sequence[Candidate], measure: Measure, steps: str) -> list[str]:
    """Each candidate with its figure, and how those before differ from those after."""
    said = []
    for candidate in candidates:
        figure = f"{measure.label} {candidate.figure}"
        if candidate.what == FEWER:
            said.append(
                f"The dense model costs the same with {steps} sampling steps and then has {figure}, on a straight line "
                "between the numbers of steps that were measured."
            )
        else:
            said.append(f"The best {candidate.what} is {candidate.name}: {figure}.")
    return said + [_pair(one, other, measure) for one, other in combinations(candidates, 2)]


def _pair(one: Candidate, other: Candidate, measure: Measure) -> str:
    apart = paired(one.series, other.series)
    if apart is None:
        return f"{_capital(one.name)} and {other.name} have no seed in common, so nothing is said of their difference."
    if apart.half is None:
        ahead, behind = (one, other) if (apart.mean < 0) == measure.less else (other, one)
        return (
            f"{_capital(ahead.name)} is ahead of {behind.name} with the only seed in common, which gives no interval."
        )
    found = standing(apart, bool(measure.less))
    seeds = f"95% interval, {plural(apart.n, 'seed')}"
    if found == "open":
        span = reach(apart.low, apart.high)
        return f"Between {one.name} and {other.name} nothing is shown: their difference is {span} ({seeds})."
    ahead, behind = (one, other) if found == "better" else (other, one)
    least, most = sorted((abs(apart.mean) - apart.half, abs(apart.mean) + apart.half))
    return f"{_capital(ahead.name)} is ahead of {behind.name} by {reach(least, most).replace('+', '')} ({seeds})."


def _others(
    comparison: Comparison, setting: Setting, single: Method | None, routed: Method | None, primary: Measure
) -> list[str]:
    """How the best single model and the best routed method stand on what did not decide."""
    if not (single and routed):
        return []
    said: dict[str, list[str]] = {}
    for measure in comparison.measures:
        if measure is primary or measure.less is None:
            continue
        apart = comparison.difference(setting, single, routed, measure.key)
        if apart is None or apart.half is None:
            continue
        found = standing(apart, measure.less)
        who = {
            "better": f"{single.name} is ahead",
            "worse": f"{routed.name} is ahead",
            "open": "nothing is shown",
        }
        said.setdefault(who[found], []).append(measure.label)
    return [f"On {listed(labels)} {who}." for who, labels in said.items()]


def _left_out(comparison: Comparison, setting: Setting, measure: Measure) -> list[str]:
    """Methods that are not at the budget, or have fewer seeds than others."""
    pruned = [m for m in comparison.methods(setting) if m.kind != "dense"]
    off = [m for m in pruned if not comparison.equal_cost(setting, m)]
    few = [
        m
        for m in pruned
        if m not in off and len(comparison.series(setting, m, measure.key)) < _most(comparison, setting)
    ]
    said = []
    if off:
        costs = [f"{m.name} ({percent(comparison.mean(setting, m, 'cost'))})" for m in off]
        said.append(f"Not at this cost, and so not chosen from: {listed(costs)}.")
    if few:
        names = listed([m.name for m in few])
        said.append(f"With fewer seeds than others, and so not chosen from: {names}.")
    return said


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text.startswith("the ") else text
