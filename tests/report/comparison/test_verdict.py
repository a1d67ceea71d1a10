from __future__ import annotations

from types import SimpleNamespace

import pytest

from aptp.core.record import Record
from aptp.report.comparison.claims import Claim, claims
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.trials import Setting
from aptp.report.comparison.verdict import verdict, verdicts
from aptp.report.wording import plural

MAIN = Setting("A", 0.66)
KEY = "cmmd_evaluator"


def settle(records: list[Record], figures: dict[str, float], dense: float = 0.0, noise: float = 0.001) -> list[Record]:
    """Give each method a CMMD (and every seed a little of its own), and the dense model with fewer steps `dense`."""
    for record in records:
        for result in record.results:
            for start, figure in figures.items():
                if result.name.startswith(start):
                    result.metrics[KEY] = figure + noise * ((record.config["seed"] + len(start)) % 3 - 1)
            if result.sampling_steps and dense:
                result.metrics[KEY] = dense
    return records


def test_the_dense_model_keeps_a_budget_with_steps_that_were_measured(make: SimpleNamespace) -> None:
    """Of 10, 8 and 5 of 15 steps the first costs the budget; nothing is read off between two of them."""
    records = settle(make.study(5), {"contrastive+sinkhorn": 0.1, "taylor": 0.2, "magnitude": 0.3})
    for record in records:
        for result in record.results:
            if result.sampling_steps:
                result.metrics[KEY] = {10: 0.5, 8: 0.04, 5: 0.6}[result.sampling_steps]
    found = verdict(gather(make.sources(*records)), MAIN)
    fewer = found.candidates[0]
    assert (fewer.name, set(fewer.series.values())) == ("the dense model with 8 steps", {0.04})
    assert found.reasons[0].endswith("that keep the budget is 8 steps, at 53% of the cost: CMMD 0.0400 ± 0.")
    assert found.choice == "the dense model with 8 steps, by CMMD alone"
    low = verdict(gather(make.sources(*make.study(3, budget=0.3))), Setting("A", 0.3))
    assert [candidate.what for candidate in low.candidates] == ["single model", "routed method"]


def test_a_method_ahead_of_all_is_recommended(make: SimpleNamespace) -> None:
    records = settle(make.study(5), {"contrastive+sinkhorn": 0.1, "taylor": 0.2, "magnitude": 0.3}, dense=0.4)
    only(records, KEY)
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == "contrastive + sinkhorn"
    assert found.advice.startswith("Use contrastive + sinkhorn: it has the best CMMD, 0.100 ±")
    assert "is ahead of the dense model with 10 steps and taylor" in found.advice
    assert any(reason.startswith("contrastive + sinkhorn is ahead of taylor by 0.0") for reason in found.reasons)


def test_what_another_candidate_is_ahead_of_is_not_chosen(make: SimpleNamespace) -> None:
    """Both others are open against the best mean, but the dense model with fewer steps is behind the single one."""
    records = only_of_each_sort(make)
    figures = {"dense": [0.3, 0.3, 0.3], "taylor": [0.285, 0.28, 0.283], "contrastive": [0.2, 0.29, 0.31]}
    for record in records:
        for result in record.results:
            if result.sampling_steps or result.name != "dense":
                result.metrics[KEY] = figures[result.name.partition("+")[0].partition(",")[0]][record.config["seed"]]
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.advice.startswith("Not settled: contrastive")
    assert "taylor is the choice that needs less" in found.advice


def only_of_each_sort(make: SimpleNamespace) -> list[Record]:
    return make.pair(3, evaluate__dense_steps=[10])


def only(records: list[Record], *keys: str) -> None:
    """Leave these metrics alone."""
    for record in records:
        for result in record.results:
            result.metrics = {key: value for key, value in result.metrics.items() if key in keys}
            result.teacher_error = None


def test_who_is_ahead_on_what_did_not_decide_is_said(make: SimpleNamespace) -> None:
    records = settle(make.study(5), {"contrastive+sinkhorn": 0.1, "taylor": 0.2, "magnitude": 0.3}, dense=0.4)
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == "contrastive + sinkhorn, by CMMD alone"
    assert found.advice.startswith("By CMMD alone, use contrastive + sinkhorn: it has the best CMMD")
    assert (
        "But the dense model with 10 steps is ahead of contrastive + sinkhorn on Fréchet distance and" in found.advice
    )
    assert found.advice.endswith(", by intervals that exclude 0.")


@pytest.mark.parametrize("dense", [1, 2])
def test_only_seeds_in_common_decide(make: SimpleNamespace, dense: int) -> None:
    records = settle(make.study(5), {"contrastive+sinkhorn": 0.1, "taylor": 0.2, "magnitude": 0.3}, dense=0.4)
    only(records, KEY)
    for record in records:
        if record.config["seed"] >= dense:
            record.results = [result for result in record.results if not result.sampling_steps]
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == f"contrastive + sinkhorn ({plural(dense, 'seed')})"
    assert found.advice.endswith("in common: a direction, not a result.")


def test_nothing_is_recommended_without_a_seed_in_common(make: SimpleNamespace) -> None:
    records = [make.record(s, evaluate__dense_steps=[]) for s in range(3)]
    records += [make.record(s, pruner="taylor", evaluate__dense_steps=[]) for s in range(3, 6)]
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.advice == "taylor and contrastive have no seed in common, so none is recommended."


def test_steps_that_were_measured_with_fewer_seeds_are_named(make: SimpleNamespace) -> None:
    records = settle(make.study(5), {"contrastive+sinkhorn": 0.3, "taylor": 0.4}, dense=0.2)
    for record in records:
        if record.config["seed"] > 2:
            record.results = [result for result in record.results if result.sampling_steps != 10]
    reasons = verdict(gather(make.sources(*records)), MAIN).reasons
    assert "With fewer seeds than others, and so not chosen from: dense, 10 steps." in reasons


def test_dense_rows_are_lent_only_where_there_are_none(make: SimpleNamespace) -> None:
    records = [*make.study(3), *make.study(3, recover__guidance=3)]
    for record in records[len(records) // 2 :]:
        for result in record.results:
            if result.sampling_steps or result.name == "dense":
                result.metrics[KEY] = 0.5
                result.latency_ms = result.latency_ms and 1.0
    found = gather(make.sources(*records), mixed=True)
    for setting in found.settings:
        (dense,) = [m for m in found.methods(setting, "dense") if m.base == "dense"]
        own = bool(found.changed(setting.letter))
        assert (set(found.series(setting, dense, KEY).values()) == {0.5}) == own
        assert (set(found.series(setting, dense, "latency_ms").values()) == {1.0}) == own


def test_two_seeds_are_a_direction(make: SimpleNamespace) -> None:
    records = settle(make.study(2), {"contrastive+sinkhorn": 0.1, "taylor": 0.2, "magnitude": 0.3}, dense=0.4)
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == "contrastive + sinkhorn (2 seeds)"
    assert found.advice.endswith("with 2 seeds in common: a direction, not a result.")
    assert told(records, make)[0].answer == "not shown"


def test_methods_off_the_budget_do_not_count_for_the_most_seeds(make: SimpleNamespace) -> None:
    records = [*make.study(5), *(make.record(seed, pruner="obs") for seed in range(6))]
    for record in records:
        if record.results[-1].name == "obs":
            record.results[-1].fraction = 0.75
    found = verdict(gather(make.sources(*records)), MAIN)
    assert {candidate.what for candidate in found.candidates} == {"dense, fewer steps", "single model", "routed method"}


def test_a_figure_that_is_no_number_counts_as_not_measured(make: SimpleNamespace) -> None:
    records = make.study(3)
    broken = next(record for record in records if record.results[-1].name == "taylor")
    broken.results[-1].metrics[KEY] = float("nan")
    found = gather(make.sources(*records))
    (warning,) = [line for line in found.warnings if "not measured" in line]
    assert warning.startswith("taylor, seed 0: cmmd_evaluator is nan in 'run ")
    assert "With fewer seeds than others, and so not chosen from: taylor." in verdict(found, MAIN).reasons


def test_the_dense_model_stands_beside_every_way_to_recover(make: SimpleNamespace) -> None:
    records = [*make.study(3), *make.study(3, recover__guidance=3)]
    for record in records[len(records) // 2 :]:
        record.results = [result for result in record.results if not result.sampling_steps]
    found = gather(make.sources(*records), mixed=True)
    for setting in found.settings:
        assert [len(found.seeds(setting, m)) for m in found.methods(setting, "dense")] == [3] * 4
    apart = [*make.study(3), *make.study(3, evaluate__guidance=1)]
    for record in apart[len(apart) // 2 :]:
        record.results = [result for result in record.results if not result.sampling_steps]
    found = gather(make.sources(*apart), mixed=True)
    assert sorted(len(found.methods(setting, "dense")) for setting in found.settings) == [1, 4]


def test_what_is_not_settled_is_said_to_be_open(make: SimpleNamespace) -> None:
    records = settle(make.study(3), {"contrastive+sinkhorn": 0.1, "taylor": 0.1002}, dense=0.4)
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == "open: contrastive + sinkhorn or taylor"
    assert found.advice.startswith("Not settled: contrastive + sinkhorn has the best CMMD")
    assert "contains 0" in found.advice
    assert "taylor is the choice that needs less: one model, and no router. 3 seeds only" in found.advice
    assert "Between taylor and contrastive + sinkhorn nothing is shown" in " ".join(found.reasons)


def test_the_simpler_of_two_that_cannot_be_told_apart(make: SimpleNamespace) -> None:
    records = settle(make.study(3), {"contrastive+sinkhorn": 0.1002, "taylor": 0.1}, dense=0.4)
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == "taylor"
    assert (
        "is the simplest (one model, and no router), though its lead on contrastive + sinkhorn is not" in found.advice
    )


def test_one_seed_is_a_direction(make: SimpleNamespace) -> None:
    found = verdict(gather(make.sources(*make.study(1))), MAIN)
    assert "(1 seed)" in found.choice
    assert "a direction, not a result" in found.advice
    assert found.difference == "1 seed"
    assert any("the only seed in common, too few for an interval" in reason for reason in found.reasons)


@pytest.mark.parametrize("key", [KEY, "clip_score_evaluator"])
@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize(("taylor", "contrastive"), [(0.1, 0.3), (0.3, 0.1)])
def test_the_one_with_the_better_figure_is_ahead(
    key: str, seeds: int, taylor: float, contrastive: float, make: SimpleNamespace
) -> None:
    records = make.pair(seeds, evaluate__dense_steps=[])
    for record in records:
        record.results[-1].metrics[key] = taylor if record.results[-1].name == "taylor" else contrastive
    only(records, key)
    ahead, behind = ("taylor", "contrastive") if (taylor < contrastive) == (key == KEY) else ("contrastive", "taylor")
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice.startswith(ahead)
    assert found.reasons[-1].startswith(f"{ahead} is ahead of {behind} ")
    assert "too few for an interval" in found.reasons[-1] or seeds == 3


@pytest.mark.parametrize(("first", "second"), [("taylor", "contrastive"), ("contrastive", "taylor")])
def test_who_is_ahead_of_the_other_is_told_measure_by_measure(first: str, second: str, make: SimpleNamespace) -> None:
    records = make.pair(3, evaluate__dense_steps=[])
    only(records, KEY, "frechet_evaluator", "clip_score_evaluator")
    for record in records:
        mine = record.results[-1]
        mine.metrics["frechet_evaluator"] = 0.1 if mine.name.startswith(first) else 0.2
        mine.metrics["clip_score_evaluator"] = 90.0 if mine.name.startswith(first) else 95.0
    reasons = verdict(gather(make.sources(*records)), MAIN).reasons
    assert f"On Fréchet distance {first} is ahead." in reasons
    assert f"On CLIP score {second} is ahead." in reasons


def test_methods_off_the_budget_or_with_fewer_seeds_are_not_chosen(make: SimpleNamespace) -> None:
    records = [*make.study(3), make.record(0, pruner="obs")]
    settle(records, {"magnitude": 0.01, "obs": 0.01})
    for record in records:
        if record.results[-1].name == "magnitude":
            record.results[-1].fraction = 0.75
    found = verdict(gather(make.sources(*records)), MAIN)
    assert "taylor" in found.reasons[1]
    assert "Not at this cost, and so not chosen from: magnitude (75.0%)." in found.reasons
    assert "With fewer seeds than others, and so not chosen from: obs." in found.reasons


def test_there_is_a_verdict_for_each_budget(make: SimpleNamespace) -> None:
    records = [record for budget in (0.5, 0.8) for record in make.study(2, budget=budget)]
    found = verdicts(gather(make.sources(*records)))
    assert [each.title for each in found] == ["50% of the dense MACs", "80% of the dense MACs"]


def test_only_routed_methods_without_fewer_steps(make: SimpleNamespace) -> None:
    found = verdict(gather(make.sources(make.record(0, evaluate__dense_steps=[]))), MAIN)
    assert found.advice.startswith("Use contrastive: nothing else was measured at this cost")


def test_several_of_one_sort_are_not_nothing_else(make: SimpleNamespace) -> None:
    records = [make.record(s, router=r, evaluate__dense_steps=[]) for s in range(3) for r in ("contrastive", "kmeans")]
    settle(records, {"contrastive": 0.1, "kmeans": 0.2})
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.advice.startswith("contrastive has the best CMMD, 0.100 ±")
    assert found.advice.endswith(
        "of 2 methods at this cost; no other sort was measured with as many seeds. See how they differ."
    )


def told(records: list[Record], make: SimpleNamespace) -> list[Claim]:
    return claims(gather(make.sources(*records)))


def test_claims_of_the_study(make: SimpleNamespace) -> None:
    records = [*make.study(), *(make.record(seed, router="random") for seed in range(3))]
    single, meaning, hard, collapse, learning = told(records, make)
    assert [claim.answer for claim in (single, meaning, hard, collapse, learning)] == ["no", "yes", "yes", "yes", "yes"]
    assert len(single.figures) == len(learning.figures) == 3
    assert single.figures[2].startswith(
        "Intervals that exclude 0 against it: 3 of 6; where nothing differs, 0.15 would"
    )
    assert single.figures[0].startswith("At 66% of the dense MACs, taylor − contrastive + sinkhorn: CMMD −0.0")
    assert single.figures[0].endswith("No.")
    assert "in its favour, 3 seeds" in single.figures[1]
    assert single.figures[1].endswith("Yes.")
    assert any(line.startswith("random: 0.0") for line in meaning.figures)
    assert any(line.startswith("random-codes − contrastive + sinkhorn: −0.") for line in meaning.figures)
    assert any(line.startswith("kmeans: +0.") and line.endswith("(3 seeds)") for line in hard.figures)
    assert hard.figures[0].startswith("mean over 3 seeds: +0.")
    assert "512 prompts in 40 clusters" in hard.figures[1]
    assert collapse.figures[0].startswith("seed 0: 3.")


def test_better_than_every_baseline_is_yes_only_by_all_intervals(make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in records:
        if record.results[-1].name == "contrastive+sinkhorn":
            for key in record.results[-1].metrics:
                record.results[-1].metrics[key] *= 1.2 if key.startswith("clip") else 0.5
    assert told(records, make)[0].answer == "yes"
    for record in records:
        if record.results[-1].name == "magnitude":
            record.results[-1].metrics["frechet_evaluator"] *= 0.1 if record.config["seed"] else 1
    assert told(records, make)[0].answer == "not shown"


def test_how_far_pictures_moved_from_the_dense_models_decides_no_claim(make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in records:
        own = record.results[-1].name == "contrastive+sinkhorn"
        for key in list(record.results[-1].metrics) if own else ():
            record.results[-1].metrics[key] *= 1.2 if key.startswith("clip") else 0.5
        record.results[-1].metrics["cmmd_evaluator_to_dense"] = 0.2 if own else 0.1 + 0.01 * record.config["seed"]
    single = told(records, make)[0]
    assert single.answer == "yes"
    assert "to dense" not in single.criterion + "".join(single.figures)


def test_a_score_that_counts_against_it_is_a_no(make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in records:
        if record.results[-1].name == "contrastive+sinkhorn":
            for key in record.results[-1].metrics:
                record.results[-1].metrics[key] *= 0.5
    assert told(records, make)[0].answer == "no"


def test_a_reference_off_the_budget_is_compared_with_nothing(make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in records:
        if record.results[-1].name == "contrastive+sinkhorn":
            record.results[-1].fraction = 0.74
    single = told(records, make)[0]
    assert single.answer == "not shown"
    assert single.figures == ["At 66% of the dense MACs it costs 74.0%, so nothing beside it costs the same."]


def test_claims_without_their_figures_are_not_shown(make: SimpleNamespace) -> None:
    found = told([make.record(seed, without=("nmi", "hardness")) for seed in range(3)], make)
    assert [claim.answer for claim in found] == ["not shown"] * 5
    assert all(len(claim.figures) == 1 for claim in found)


def test_hardness_needs_seeds_and_prompts(make: SimpleNamespace) -> None:
    records = [make.record(seed) for seed in range(3)]
    assert told(records[:1], make)[2].answer == "not shown"
    assert told(records, make)[2].answer == "yes"
    records[0].routing["hardness"]["prompts"] = 499
    assert told(records, make)[2].answer == "not shown"


@pytest.mark.parametrize(("in_use", "answer"), [((3.7, 3.5, 3.1), "no"), ((3.7, 2.9, 3.1), "not shown")])
def test_collapse_is_asked_of_every_seed(in_use: tuple[float, ...], answer: str, make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in records:
        if record.results[-1].name == "contrastive+none":
            record.routing["perplexity"] = in_use[record.config["seed"]]
    assert told(records, make)[3].answer == answer


def test_meaning_is_against_chance_in_every_seed(make: SimpleNamespace) -> None:
    records = [make.record(seed, router=router) for seed in range(3) for router in ("contrastive", "random")]
    assert told(records, make)[1].answer == "yes"
    assert told(records[:4], make)[1].answer == "not shown"
    records[0].routing["nmi"] = 0.0
    assert told(records, make)[1].answer == "not shown"
    records[2].routing["nmi"] = records[4].routing["nmi"] = -0.1
    assert told(records, make)[1].answer == "no"
