"""What prompt-tailored pruning claims, answered from the figures: yes, no, or not shown.

The rules are those that docs/question.md wrote down before the benchmark was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aptp.report.comparison.intervals import FEWEST, LEVEL, Interval, Standing, interval, standing
from aptp.report.comparison.methods import Method
from aptp.report.comparison.phrases import plus_minus, setting_title
from aptp.report.comparison.trials import EQUAL_COST, Comparison, Setting
from aptp.report.measures import TO_DENSE, Measure
from aptp.report.wording import listed, number, percent, plural, reach, signed

ENOUGH_PROMPTS = 500
"""Prompts under which a rank correlation answers nothing."""
COLLAPSED = 0.75
"""Under this share of the experts in use, codes are said to have collapsed."""
CONTROLS = ("random-codes", "kmeans")
"""Routers that learn no codes, or no routes."""

Answer = Literal["yes", "no", "not shown"]


@dataclass(frozen=True)
class Claim:
    """A question, its answer, when that answer is given, and the figures."""

    question: str
    answer: Answer
    criterion: str
    figures: list[str]


def claims(comparison: Comparison) -> list[Claim]:
    """All of them, about the reference method."""
    return [
        _single(comparison),
        _meaning(comparison),
        _hardness(comparison),
        _collapse(comparison),
        _learning(comparison),
    ]


def _single(comparison: Comparison) -> Claim:
    rivals = {s: comparison.methods(s, "single") for s in comparison.settings}
    return _ahead(
        comparison,
        "Is it better than every single-model baseline at the same cost and recovery steps?",
        rivals,
        "A search comes on top of the recovery steps that all share.",
        "No single model was run at the same cost, protocol and seeds.",
    )


def _learning(comparison: Comparison) -> Claim:
    rivals = {s: _controls(comparison, s) for s in comparison.settings}
    return _ahead(
        comparison,
        "Is learning worth it: is it better than codes and routes that are not learned?",
        rivals,
        "In random-codes neither codes nor routes are learned, in kmeans codes alone.",
        f"Neither of {listed(CONTROLS)} was run at the same cost, protocol and seeds.",
    )


def _controls(comparison: Comparison, setting: Setting) -> list[Method]:
    alike = [m for m in comparison.methods(setting, "routed") if m.settings == comparison.reference.settings]
    return [m for m in alike if dict(m.strategies)["router"] in CONTROLS]


def _ahead(
    comparison: Comparison, question: str, rivals: Mapping[Setting, Sequence[Method]], remark: str, nobody: str
) -> Claim:
    """Whether the reference is better than each of its rivals, by the paired differences rival − reference.

    Judged by what the question was asked with: distances to the real pictures, and scores.
    """
    reference = comparison.reference
    distances = [m for m in comparison.measures if m.less and m.key != "teacher_error" and not m.key.endswith(TO_DENSE)]
    judged = distances or [m for m in comparison.measures if m.less]
    scores = [m for m in comparison.measures if m.less is False]
    answers: list[Answer] = []
    stood: list[Standing] = []
    figures = []
    for setting, methods in rivals.items():
        where = setting_title(comparison, setting)
        if not comparison.seeds(setting, reference):
            continue
        if not comparison.equal_cost(setting, reference):
            answers.append("not shown")
            cost = percent(comparison.mean(setting, reference, "cost"))
            figures.append(f"At {where} it costs {cost}, so nothing beside it costs the same.")
            continue
        for rival in methods:
            known = {m: comparison.difference(setting, rival, reference, m.key) for m in [*judged, *scores]}
            apart = {measure: found for measure, found in known.items() if found}
            if rival == reference or not comparison.equal_cost(setting, rival) or not apart:
                continue
            stands = {m: standing(found, less=not m.less) for m, found in apart.items()}
            answers.append(_beats(stands, judged))
            stood += [stands[measure] for measure, found in apart.items() if found.half is not None]
            said = "; ".join(f"{m.label} {_told(found, stands[m])}" for m, found in apart.items())
            label = comparison.label(setting, rival)
            figures.append(f"At {where}, {label} − {reference.name}: {said}. {answers[-1].capitalize()}.")
    if len(stood) > 1:
        chance = number(len(stood) * (1 - LEVEL) / 2, 2)
        figures.append(
            f"Intervals that exclude 0 against it: {stood.count('worse')} of {len(stood)}; where nothing differs, "
            f"{chance} would by chance, for they are not corrected for their number."
        )
    names = listed([m.label for m in judged])
    also = f", and that of {listed([m.label for m in scores])} not against it" if scores else ""
    return Claim(
        question,
        "no" if "no" in answers else "yes" if answers and set(answers) == {"yes"} else "not shown",
        f"Yes, if against each the {LEVEL:.0%} intervals of {names} exclude 0 in its favour{also}; no, if one of these "
        f"excludes 0 against it. The same cost is one within {percent(EQUAL_COST)} of the budget. {remark}",
        figures or [nobody],
    )


def _beats(stands: Mapping[Measure, Standing], judged: Sequence[Measure]) -> Answer:
    """Against one rival."""
    if "worse" in stands.values():
        return "no"
    return "yes" if all(stands.get(measure) == "better" for measure in judged) else "not shown"


def _told(apart: Interval, stands: Standing) -> str:
    if apart.half is None:
        return f"{signed(apart.mean)}, {plural(apart.n, 'seed')}"
    favour = {"better": "in its favour", "worse": "against it", "open": "open"}[stands]
    return f"{reach(apart.low, apart.high)} ({favour}, {plural(apart.n, 'seed')})"


def _meaning(comparison: Comparison) -> Claim:
    setting, reference = comparison.main, comparison.reference
    chance = next((m for m in comparison.methods(setting, "routed") if dict(m.strategies)["router"] == "random"), None)
    mine = comparison.series(setting, reference, "nmi")
    random = comparison.series(setting, chance, "nmi") if chance else {}
    learned = [
        f"{comparison.label(setting, m)} − {reference.name}: {_told(apart, standing(apart, less=True))}"
        for m in _controls(comparison, setting)
        if (apart := comparison.difference(setting, m, reference, "nmi"))
    ]
    return Claim(
        "Do its clusters of prompts mean something?",
        _in_every_seed(mine[seed] > random[seed] for seed in mine.keys() & random.keys()),
        "Yes, if the normalised mutual information of experts and kinds of prompts (1: either tells the other, 0: they "
        "have nothing to do with one another) is above that of the router random in every seed; no, if in none. Where "
        "codes that nobody trained have as much, prompts of one kind lie together without any learning.",
        [*_by_method(comparison, setting, "nmi"), *learned]
        or ["The records hold no mutual information of experts and kinds."],
    )


def _in_every_seed(found: Iterable[bool]) -> Answer:
    seeds = list(found)
    if len(seeds) < FEWEST:  # too few for “in every seed” to say anything
        return "not shown"
    return "yes" if all(seeds) else "not shown" if any(seeds) else "no"


def _by_method(comparison: Comparison, setting: Setting, key: str) -> list[str]:
    return [
        f"{comparison.label(setting, m)}: {plus_minus(found)} ({plural(found.n, 'seed')})"
        for m in comparison.methods(setting, "routed")
        if (found := comparison.interval(setting, m, key))
    ]


def _hardness(comparison: Comparison) -> Claim:
    runs = [t for t in comparison.runs(comparison.main, comparison.reference) if t.own]
    by_seed = {t.seed: found for t in runs if (found := t.source.record.routing.get("hardness"))}
    over = interval(found["spearman"] for found in by_seed.values())
    enough = all(found["prompts"] >= ENOUGH_PROMPTS for found in by_seed.values())
    figures = [
        f"seed {seed}: {signed(found['spearman'])}, {reach(found['low'], found['high'])} by bootstrap, "
        f"{plural(found['prompts'], 'prompt')} in {plural(found['clusters'], 'cluster')}"
        for seed, found in by_seed.items()
    ]
    if over and over.half is not None:
        figures.insert(0, f"mean over {plural(over.n, 'seed')}: {signed(over.mean)}, {reach(over.low, over.high)}")
    figures += _others_hardness(comparison)
    return Claim(
        "Do hard prompts get large experts?",
        "not shown" if not over or not enough else "yes" if over.above(0) else "no" if over.below(0) else "not shown",
        "Yes, if the mean over seeds of the rank correlation of the error that pruning to the smallest expert causes, "
        "before recovery, with the cost of the expert that serves is above 0 by its interval, over at least "
        f"{ENOUGH_PROMPTS} prompts; no, if it is below.",
        figures or ["The records hold no rank correlation of hardness and cost."],
    )


def _others_hardness(comparison: Comparison) -> list[str]:
    """The same of the other routed methods: what of it needs no learned routes."""
    said = []
    for method in comparison.methods(comparison.main, "routed"):
        runs = [t for t in comparison.runs(comparison.main, method) if t.own and method != comparison.reference]
        found = interval(h["spearman"] for t in runs if (h := t.source.record.routing.get("hardness")))
        if found:
            span = f", {reach(found.low, found.high)}" if found.half is not None else ""
            label = comparison.label(comparison.main, method)
            said.append(f"{label}: {signed(found.mean)}{span} ({plural(found.n, 'seed')})")
    return said


def _collapse(comparison: Comparison) -> Claim:
    setting, reference = comparison.main, comparison.reference

    def bare(method: Method) -> bool:
        return method.differences(reference) == ["balancer=none"]

    without = next((m for m in comparison.methods(setting, "routed") if bare(m)), None)
    answer: Answer = "not shown"
    figures = ["The same runs without a balancer are not among these."]
    if without:
        count = len(comparison.runs(setting, without)[0].source.record.experts)
        least = COLLAPSED * count
        mine, alone = (comparison.series(setting, m, "perplexity") for m in (reference, without))
        common = mine.keys() & alone.keys()
        answer = _in_every_seed(alone[seed] < least <= mine[seed] for seed in common)
        figures = [
            f"seed {seed}: {number(mine[seed])} of {count} experts in use, without a balancer {number(alone[seed])}"
            for seed in sorted(common)
        ]
    return Claim(
        "Do the codes collapse without optimal transport?",
        answer,
        f"Yes, if in every seed fewer than {COLLAPSED:.0%} of the experts are in use without a balancer (perplexity of "
        "their shares of prompts), and with transport not; no, if in none.",
        figures,
    )
