from __future__ import annotations

from types import SimpleNamespace

import pytest

from aptp.core.record import Record
from aptp.report.comparison.claims import Claim, claims
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.trials import Comparison, Setting
from aptp.report.comparison.verdict import dense_at, verdict, verdicts

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


def test_the_dense_model_at_a_cost_lies_between_measured_steps(compared: Comparison) -> None:
    found = dense_at(compared, MAIN, KEY)
    for seed in (0, 1, 2):
        steps = {
            n: compared.series(MAIN, m, KEY)[seed]
            for n, m in zip((15, 10, 8, 5), compared.methods(MAIN, "dense"), strict=True)
        }
        low, high, cost = 8 / 15, 10 / 15, 0.66
        assert found[seed] == pytest.approx(steps[8] + (steps[10] - steps[8]) * (cost - low) / (high - low))
    assert dense_at(compared, Setting("A", 0.3), KEY) == {}


def test_a_method_ahead_of_all_is_recommended(make: SimpleNamespace) -> None:
    records = settle(make.study(5), {"contrastive+sinkhorn": 0.1, "taylor": 0.2, "magnitude": 0.3}, dense=0.4)
    found = verdict(gather(make.sources(*records)), MAIN)
    assert found.choice == "contrastive + sinkhorn"
    assert found.advice.startswith("Use contrastive + sinkhorn: it has the best CMMD, 0.100 ±")
    assert "is ahead of the dense model with fewer steps and taylor" in found.advice
    assert any(reason.startswith("contrastive + sinkhorn is ahead of taylor by 0.0") for reason in found.reasons)
    assert "with 9.9 of its 15 sampling steps" in found.reasons[0]


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
    assert "(one seed)" in found.choice
    assert "a direction, not a result" in found.advice
    assert found.difference == "one seed"
    assert any("the only seed in common, which gives no interval" in reason for reason in found.reasons)


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


def told(records: list[Record], make: SimpleNamespace) -> list[Claim]:
    return claims(gather(make.sources(*records)))


def test_claims_of_the_study(make: SimpleNamespace) -> None:
    records = [*make.study(), *(make.record(seed, router="random") for seed in range(3))]
    single, meaning, hard, collapse, learning = told(records, make)
    assert [claim.answer for claim in (single, meaning, hard, collapse, learning)] == ["no", "yes", "yes", "yes", "yes"]
    assert len(single.figures) == len(learning.figures) == 2
    assert single.figures[0].startswith("At 66% of the dense MACs, taylor − contrastive + sinkhorn: CMMD −0.0")
    assert single.figures[0].endswith("No.")
    assert "in its favour, 3 seeds" in single.figures[1]
    assert single.figures[1].endswith("Yes.")
    assert any(line.startswith("random: 0.0") for line in meaning.figures)
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
    records = [make.record(seed, router=router) for seed in range(2) for router in ("contrastive", "random")]
    assert told(records, make)[1].answer == "yes"
    records[0].routing["nmi"] = 0.0
    assert told(records, make)[1].answer == "not shown"
    records[2].routing["nmi"] = -0.1
    assert told(records, make)[1].answer == "no"
