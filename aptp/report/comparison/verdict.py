"""Which method to use, in words: what the figures of one setting say, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from aptp.report.comparison.intervals import FEWEST, Interval, interval, paired, standing
from aptp.report.comparison.methods import Method
from aptp.report.comparison.phrases import plus_minus, setting_title
from aptp.report.comparison.trials import EQUAL_COST, Comparison, Setting
from aptp.report.measures import Measure
from aptp.report.wording import NOTHING, listed, percent, plural, reach

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
    method: Method
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
    """What one setting says: `advice` in a sentence or two, `choice` in a word, `reasons` with the figures."""

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
    candidates = _candidates(comparison, setting, measure)
    if not candidates:
        nobody = f"No method at this cost has a {measure.label}."
        return Verdict(setting, title, "nothing at this cost", nobody, _left_out(comparison, setting, measure))
    found = Verdict(setting, title, "", "", candidates=candidates)
    seeds = len(candidates[0].series)
    if not seeds:
        found.choice = "open: no seed in common"
        found.advice = (
            f"{_capital(listed([c.name for c in candidates]))} have no seed in common, so none is recommended."
        )
        found.reasons = _left_out(comparison, setting, measure)
        return found
    best, recommended, found.advice = _advice(candidates, measure, len(_eligible(comparison, setting)))
    found.choice = best.name if best is recommended else f"open: {best.name} or {recommended.name}"
    if seeds < FEWEST:
        found.choice += f" ({plural(seeds, 'seed')})"
    if against := _against(comparison, setting, recommended, candidates, measure):
        found.choice += f", by {measure.label} alone"
        use = f"By {measure.label} alone, use " if found.advice.startswith("Use ") else ""
        found.advice = f"{use}{found.advice.removeprefix('Use ')} But {against}."
    by_sort = {candidate.what: candidate for candidate in candidates}
    single, routed = by_sort.get(SINGLE), by_sort.get(ROUTED)
    found.reasons = _standings(comparison, setting, candidates, measure)
    if single and routed:
        found.reasons += _others(comparison, setting, single.method, routed.method, measure)
        apart = _apart(single, routed)
        found.difference = reach(apart.low, apart.high) if apart.half is not None else plural(apart.n, "seed")
    found.reasons += _left_out(comparison, setting, measure)
    return found


def _eligible(comparison: Comparison, setting: Setting) -> list[Method]:
    """What can be chosen, however few its seeds: models at the budget, and the dense one with steps that keep it."""

    def keeps(method: Method) -> bool:
        cost = comparison.mean(setting, method, "cost")
        return cost is not None and cost <= (1 + EQUAL_COST) * setting.budget

    fewer = [m for m in comparison.methods(setting, "dense") if m.base != "dense" and keeps(m)]
    return fewer + [m for m in comparison.methods(setting) if m.kind != "dense" and comparison.equal_cost(setting, m)]


def _candidates(comparison: Comparison, setting: Setting, measure: Measure) -> list[Candidate]:
    """The best of each sort, from the simplest sort, by the seeds that all of them have."""
    eligible = _eligible(comparison, setting)
    fewer = comparison.complete(setting, [m for m in eligible if m.kind == "dense"], measure.key)
    pruned = comparison.complete(setting, [m for m in eligible if m.kind != "dense"], measure.key)
    found = []
    for means, kind, what, simple in (
        (fewer, "dense", FEWER, "nothing is pruned or trained"),
        (pruned, "single", SINGLE, "one model, and no router"),
        (pruned, "routed", ROUTED, "nothing among these is simpler"),
    ):
        if of_sort := [method for method in means if method.kind == kind]:
            best = (min if measure.less else max)(of_sort, key=means.__getitem__)
            name = f"the dense model with {best.base.removeprefix('dense, ')}" if kind == "dense" else best.name
            found.append(Candidate(name, what, simple, best, comparison.series(setting, best, measure.key)))
    common = set.intersection(*(set(c.series) for c in found)) if found else set()
    return [replace(c, series={s: v for s, v in c.series.items() if s in common}) for c in found]


def _advice(candidates: Sequence[Candidate], measure: Measure, eligible: int) -> tuple[Candidate, Candidate, str]:
    """The candidate with the best mean, the one to use, and why; of so many methods at the budget."""
    best = (min if measure.less else max)(candidates, key=lambda c: c.mean)
    others = [c for c in candidates if c is not best]
    seeds = len(best.series)
    if not others and eligible == 1:
        alone = f"Use {best.name}: nothing else was measured at this cost ({measure.label} {best.figure})."
        return best, best, alone
    leads = f"the best {measure.label}, {best.figure}"
    if not others:
        rest = f"of {eligible} methods at this cost; no other sort was measured with as many seeds"
        return best, best, f"{_capital(best.name)} has {leads}, {rest}. See how they differ."
    if seeds < FEWEST:
        few = "the only seed in common" if seeds == 1 else f"{seeds} seeds in common"
        return best, best, f"{_capital(best.name)} has {leads}, with {few}: a direction, not a result."
    beaten = [
        [other for other in candidates if other is not c and standing(_apart(other, c), bool(measure.less)) == "better"]
        for c in others
    ]
    open_ones = [c for c, by in zip(others, beaten, strict=True) if not by]
    few = (
        f" {_capital(plural(seeds, 'seed'))} only: more may settle what is open."
        if seeds < FEW_SEEDS and open_ones
        else ""
    )
    if not open_ones:
        behind = [c.name for c, by in zip(others, beaten, strict=True) if best in by]
        shown = f"and it is ahead of {listed(behind)} by intervals that exclude 0"
        return best, best, f"Use {best.name}: it has {leads}, {shown}."
    simplest = next(c for c in candidates if c is best or c in open_ones)
    if simplest is best:
        lead = f"though its lead on {listed([c.name for c in open_ones])} is not shown"
        return best, best, f"Use {best.name}: it has {leads}, and is the simplest ({best.simple}), {lead}.{few}"
    gap = _apart(best, simplest)
    untold = f"the interval of its difference to {simplest.name} ({reach(gap.low, gap.high)}) contains 0"
    less = f"As long as that is so, {simplest.name} is the choice that needs less: {simplest.simple}.{few}"
    return best, simplest, f"Not settled: {best.name} has {leads}, but {untold}. {less}"


def _against(
    comparison: Comparison,
    setting: Setting,
    recommended: Candidate,
    candidates: Sequence[Candidate],
    primary: Measure,
) -> str:
    """Who is ahead of the recommended on what did not decide, as a clause; empty where nobody is."""
    said = []
    for other in candidates:
        ahead = [
            measure.label
            for measure in comparison.measures
            if other is not recommended and measure is not primary and measure.less is not None
            if (apart := comparison.difference(setting, other.method, recommended.method, measure.key))
            and standing(apart, measure.less) == "better"
        ]
        if ahead:
            said.append(f"{other.name} is ahead of {recommended.name} on {listed(ahead)}")
    return listed(said) and f"{listed(said)}, by intervals that exclude 0"


def _standings(
    comparison: Comparison, setting: Setting, candidates: Sequence[Candidate], measure: Measure
) -> list[str]:
    """Each candidate with its figure, and how those before differ from those after."""
    said = []
    for candidate in candidates:
        figure = f"{measure.label} {candidate.figure}"
        if candidate.what == FEWER:
            cost = percent(comparison.mean(setting, candidate.method, "cost"), 0)
            steps = candidate.method.base.removeprefix("dense, ")
            best = "The best of the dense model's numbers of steps that keep the budget"
            said.append(f"{best} is {steps}, at {cost} of the cost: {figure}.")
        else:
            said.append(f"The best {candidate.what} is {candidate.name}: {figure}.")
    return said + [_pair(one, other, measure) for one, other in combinations(candidates, 2)]


def _apart(one: Candidate, other: Candidate) -> Interval:
    """The interval of one − other, whose seeds are the same."""
    found = paired(one.series, other.series)
    assert found
    return found


def _pair(one: Candidate, other: Candidate, measure: Measure) -> str:
    apart = _apart(one, other)
    if apart.half is None:
        ahead, behind = (one, other) if (apart.mean < 0) == measure.less else (other, one)
        common = "the only seed" if apart.n == 1 else f"the {apart.n} seeds"
        return f"{_capital(ahead.name)} is ahead of {behind.name} with {common} in common, too few for an interval."
    found = standing(apart, bool(measure.less))
    seeds = f"95% interval, {plural(apart.n, 'seed')}"
    if found == "open":
        span = reach(apart.low, apart.high)
        return f"Between {one.name} and {other.name} nothing is shown: their difference is {span} ({seeds})."
    ahead, behind = (one, other) if found == "better" else (other, one)
    least, most = sorted((abs(apart.mean) - apart.half, abs(apart.mean) + apart.half))
    return f"{_capital(ahead.name)} is ahead of {behind.name} by {reach(least, most).replace('+', '')} ({seeds})."


def _others(comparison: Comparison, setting: Setting, single: Method, routed: Method, primary: Measure) -> list[str]:
    """How the best single model and the best routed method stand on what did not decide."""
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
    few = []
    for alike in (
        [m for m in pruned if m not in off],
        [m for m in _eligible(comparison, setting) if m.kind == "dense"],
    ):
        complete = comparison.complete(setting, alike, measure.key)
        few += [m for m in alike if m not in complete]
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
