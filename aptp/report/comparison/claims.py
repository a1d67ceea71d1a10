"""What prompt-tailored pruning claims, answered from the figures: yes, no, or not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from aptp.report.comparison.gathering import Comparison, Setting
from aptp.report.comparison.intervals import Interval, Standing, interval, standing
from aptp.report.comparison.methods import Method
from aptp.report.comparison.verdict import plus_minus, setting_title
from aptp.report.measures import Measure
from aptp.report.wording import listed, percent, plural, reach, signed

MEANINGFUL = 0.5
"""From this normalised mutual information on, clusters are said to follow the kinds of prompts."""
ENOUGH_PROMPTS = 500
"""Prompts under which a rank correlation answers nothing."""
COLLAPSED = 0.5
"""Under this share of the experts in use, codes are said to have collapsed."""

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
    return [_ahead(comparison), _meaning(comparison), _hardness(comparison), _collapse(comparison)]


def _ahead(comparison: Comparison) -> Claim:
    distances = [m for m in comparison.measures if m.less and m.key != "teacher_error"]
    judged = distances or [m for m in comparison.measures if m.less]
    scores = [m for m in comparison.measures if m.less is False]
    answers: list[Answer] = []
    figures = []
    for setting in comparison.settings:
        where, reference = setting_title(comparison, setting), comparison.reference
        if comparison.seeds(setting, reference) and not comparison.equal_cost(setting, reference):
            answers.append("not shown")
            cost = percent(comparison.mean(setting, reference, "cost"))
            figures.append(f"At {where} it costs {cost}, so nothing beside it costs the same.")
            continue
        for rival in _rivals(comparison, setting):
            apart = {m: d for m in [*judged, *scores] if (d := comparison.difference(setting, reference, rival, m.key))}
            if apart:
                answers.append(_beats({m: standing(d, bool(m.less)) for m, d in apart.items()}, judged))
                said = [f"{m.label} {_told(d, standing(d, bool(m.less)))}" for m, d in apart.items()]
                names = f"{reference.name} − {comparison.label(setting, rival)}"
                figures.append(f"At {where}, {names}: {'; '.join(said)}.")
    labels = [m.label for m in judged]
    return Claim(
        "Is it better than every single-model baseline at the same cost and recovery steps?",
        "no" if "no" in answers else "yes" if answers and set(answers) == {"yes"} else "not shown",
        f"Yes, if against each of them the paired intervals of {listed(labels)} exclude 0 on the better side, and of "
        f"{listed([m.label for m in scores]) or 'no score'} none on the worse; no, if one of them is ahead of it on "
        f"{' or '.join(labels)}. Its search comes on top of the recovery steps that all share.",
        figures or ["No single model was run at the same cost, protocol and seeds."],
    )


def _beats(stands: Mapping[Measure, Standing], judged: Sequence[Measure]) -> Answer:
    """Against one baseline."""
    if any(stands.get(measure) == "worse" for measure in judged):
        return "no"
    ahead = all(stands.get(measure) == "better" for measure in judged)
    return "yes" if ahead and "worse" not in stands.values() else "not shown"


def _rivals(comparison: Comparison, setting: Setting) -> list[Method]:
    """Single models that cost what the budget is."""
    others = [m for m in comparison.methods(setting, "single") if m != comparison.reference]
    return [m for m in others if comparison.equal_cost(setting, m)]


def _told(apart: Interval, found: str) -> str:
    if apart.half is None:
        return f"{signed(apart.mean)}, one seed"
    return f"{reach(apart.low, apart.high)} ({found}, {plural(apart.n, 'seed')})"


def _meaning(comparison: Comparison) -> Claim:
    setting = comparison.main
    found = comparison.interval(setting, comparison.reference, "nmi")
    answer: Answer = "not shown"
    if found:
        answer = "yes" if found.above(MEANINGFUL) else "no" if found.below(MEANINGFUL) else "not shown"
    figures = [
        f"{comparison.label(setting, m)}: {plus_minus(each)} ({plural(each.n, 'seed')})"
        for m in comparison.methods(setting, "routed")
        if (each := comparison.interval(setting, m, "nmi"))
    ]
    return Claim(
        "Do its clusters of prompts mean something?",
        answer,
        "Yes, if the interval of the normalised mutual information of experts and kinds of prompts lies above "
        f"{MEANINGFUL:g} (1: each tells the other, 0: they have nothing to do with one another); no, if below.",
        figures or ["The records hold no mutual information of experts and kinds."],
    )


def _hardness(comparison: Comparison) -> Claim:
    setting = comparison.main
    by_seed = {
        trial.seed: trial.source.record.routing["hardness"]
        for trial in comparison.runs(setting, comparison.reference)
        if trial.own and trial.source.record.routing.get("hardness")
    }
    figures: list[str] = []
    answer: Answer = "not shown"
    if by_seed:
        low, high = _span(list(by_seed.values()))
        mean = fmean(found["spearman"] for found in by_seed.values())
        if all(found["prompts"] >= ENOUGH_PROMPTS for found in by_seed.values()):
            answer = "yes" if low > 0 else "no" if high < 0 else "not shown"
        figures.append(f"mean over {plural(len(by_seed), 'seed')}: {signed(mean)}, interval {reach(low, high)}")
        figures += [
            f"seed {seed}: {signed(found['spearman'])}, bootstrap interval {reach(found['low'], found['high'])}, "
            f"{plural(found['prompts'], 'prompt')} in {plural(found['clusters'], 'cluster')}"
            for seed, found in by_seed.items()
        ]
    return Claim(
        "Do hard prompts get large experts?",
        answer,
        "Yes, if the rank correlation of the error that pruning to the smallest expert causes with the cost of the "
        f"expert that a prompt gets is above 0 by its interval, on at least {ENOUGH_PROMPTS} prompts; no, if below 0.",
        figures or ["The records hold no rank correlation of hardness and cost."],
    )


def _span(found: list[dict[str, float]]) -> tuple[float, float]:
    """The interval over seeds; with one seed, that of its own bootstrap over clusters of prompts."""
    over = interval(each["spearman"] for each in found)
    if over is None or over.low is None or over.high is None:
        return found[0]["low"], found[0]["high"]
    return over.low, over.high


def _collapse(comparison: Comparison) -> Claim:
    setting, reference = comparison.main, comparison.reference
    without = next(
        (
            m
            for m in comparison.methods(setting, "routed")
            if dict(m.strategies).get("router") == dict(reference.strategies).get("router")
            and dict(m.strategies).get("balancer") == "none"
            and m.settings == reference.settings
        ),
        None,
    )
    question = "Do the codes collapse without optimal transport?"
    criterion = (
        f"Yes, if without a balancer fewer than {COLLAPSED:.0%} of the experts are in use (perplexity of their shares "
        "of prompts) and with transport more are, by intervals; no, if more than that are in use without."
    )
    runs = comparison.runs(setting, without) if without else []
    if without is None or not runs or without == reference:
        return Claim(question, "not shown", criterion, ["The same runs without a balancer are not among these."])
    experts = len(runs[0].source.record.experts)
    alone = comparison.interval(setting, without, "perplexity")
    apart = comparison.difference(setting, reference, without, "perplexity")
    answer: Answer = "not shown"
    if alone and alone.above(COLLAPSED * experts):
        answer = "no"
    elif alone and apart and alone.below(COLLAPSED * experts) and apart.above(0):
        answer = "yes"
    figures = [
        f"{comparison.label(setting, m)}: {plus_minus(each)} of {experts} experts in use ({plural(each.n, 'seed')})"
        for m in (reference, without)
        if (each := comparison.interval(setting, m, "perplexity"))
    ]
    if apart and apart.half is not None:
        figures.append(f"difference: {reach(apart.low, apart.high)}")
    return Claim(question, answer, criterion, figures)
