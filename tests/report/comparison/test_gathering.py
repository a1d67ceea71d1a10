from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from aptp.core.errors import RequestError
from aptp.core.record import Record
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.intervals import interval
from aptp.report.comparison.sources import Failure, Source, read_source, united
from aptp.report.comparison.trials import Comparison, Setting
from aptp.report.comparison.verdict import verdict

MAIN = Setting("A", 0.66)


def names(comparison: Comparison, setting: Setting = MAIN) -> list[str]:
    return [method.name for method in comparison.methods(setting)]


def named(comparison: Comparison, name: str):
    return next(m for s in comparison.settings for m in comparison.methods(s) if m.name == name)


def test_methods_are_named_after_what_differs(compared: Comparison) -> None:
    assert names(compared) == [
        "dense", "dense, 10 steps", "dense, 8 steps", "dense, 5 steps",
        "contrastive + sinkhorn", "contrastive + none", "kmeans", "random-codes", "taylor", "magnitude",
    ]  # fmt: skip
    assert compared.reference.name == "contrastive + sinkhorn"
    assert {m.name: m.kind for m in compared.methods(MAIN)}["taylor"] == "single"


def test_settings_are_named_where_they_differ_from_the_usual(make: SimpleNamespace) -> None:
    records = [*make.study(2), make.record(0, experts=8), make.record(0, router__weight=0.5)]
    records.append(make.record(0, pruner={"name": "magnitude", "norm": "l2"}))
    found = gather(make.sources(*records))
    assert {"contrastive + sinkhorn, experts=8", "contrastive + sinkhorn, router.weight=0.5"} < set(names(found))
    assert "magnitude, pruner.norm=l2" in names(found)
    assert "experts" in found.naming.shared()
    assert found.naming.shared()["experts"] == "4"


def test_a_learned_code_is_named_after_its_search_and_a_pruner_without_one_is_not(make: SimpleNamespace) -> None:
    searched = {"search__rate": 0.2, "relaxation__offset": 1.0, "encoder": {"name": "minilm", "max_tokens": 9}}
    records = [make.record(0, pruner=p, **more) for p in ("learned", "taylor") for more in ({}, {}, searched)]
    for record in records[:3]:
        record.results[-1].search_steps = 80
    for seed, record in enumerate(records):
        record.config["seed"] = seed % 3
    found = gather(make.sources(*records))
    assert names(found)[4:] == ["learned", "learned, relaxation.offset=1, search.rate=0.2", "taylor"]


def test_what_an_earlier_version_searched_is_not_taken_for_todays(make: SimpleNamespace) -> None:
    """Nor is what it did not search told apart from it."""
    rows = [{}, {"pruner": "learned"}, {"pruner": "taylor"}, {"router": "random-codes", "balancer": "none"}]
    records = [make.record(seed, **row) for row in rows for seed in range(2)]
    for record in records:
        if record.config["seed"]:
            del record.config["search"]["code_rate"]
            if record.config["pruner"]:
                record.results[-1].search_steps = None
    assert sorted(names(gather(make.sources(*records)))[4:]) == [
        "contrastive", "contrastive, search.code_rate=null", "learned", "learned, search.code_rate=null",
        "random-codes", "taylor",
    ]  # fmt: skip


def test_a_lone_balancer_is_not_named_but_may_be_asked_for(make: SimpleNamespace) -> None:
    runs = make.sources(make.record(0), make.record(0, pruner="taylor"))
    assert names(gather(runs))[-2:] == ["contrastive", "taylor"]
    assert gather(runs, reference="contrastive + sinkhorn").reference.name == "contrastive"
    assert gather(runs, reference="taylor").reference.name == "taylor"
    with pytest.raises(RequestError, match="unknown method 'tailor'; did you mean 'taylor'"):
        gather(runs, reference="tailor")


def test_a_router_and_a_pruner_of_one_name_are_told_apart(make: SimpleNamespace) -> None:
    runs = make.sources(make.record(0, router="random"), make.record(0, pruner="random"))
    assert names(gather(runs))[-2:] == ["random + sinkhorn", "random"]


def test_fewer_steps_do_not_lower_the_number_of_weights(make: SimpleNamespace) -> None:
    record = make.record(0, budget="params:0.66")
    record.budget.unit = "parameters"
    found = gather(make.sources(record))
    assert found.mean(MAIN, named(found, "dense"), "cost") == 1
    assert found.mean(MAIN, named(found, "dense, 5 steps"), "cost") is None
    assert "dense model" not in verdict(found, MAIN).choice


def test_one_expert_is_a_single_model(make: SimpleNamespace) -> None:
    found = gather(make.sources(*make.study(1), make.record(0, experts=1)))
    assert named(found, "contrastive + sinkhorn, experts=1").kind == "single"


def test_the_dense_row_counts_once_a_seed(compared: Comparison) -> None:
    dense = named(compared, "dense")
    assert compared.seeds(MAIN, dense) == [0, 1, 2]
    assert sum(row.method == dense for row in compared.rows) == 18
    assert compared.warnings == []


def test_times_of_the_same_row_are_averaged(compared: Comparison) -> None:
    dense = named(compared, "dense")
    measured = [r.figures["latency_ms"] for r in compared.rows if r.method == dense and r.seed == 0]
    assert compared.series(MAIN, dense, "latency_ms")[0] == pytest.approx(sum(measured) / 6)
    assert compared.mean(MAIN, dense, "time") == pytest.approx(1)
    assert compared.mean(MAIN, named(compared, "dense, 5 steps"), "time") == pytest.approx(1 / 3)


def test_runs_that_disagree_on_the_same_row_are_told_of(make: SimpleNamespace) -> None:
    one, other = make.record(0), make.record(0, pruner="taylor")
    other.results[0].metrics["cmmd_evaluator"] *= 1.02
    (warning,) = gather(make.sources(one, other)).warnings
    assert warning.startswith("dense, seed 0: the runs that hold this row disagree, and 'run 0' counts: cmmd_evaluator")
    other.results[0].metrics["cmmd_evaluator"] /= 1.019
    assert gather(make.sources(one, other)).warnings == []


def test_a_pruner_beside_counts_where_it_has_no_run_of_its_own(make: SimpleNamespace) -> None:
    beside, own = make.record(0, compare=["taylor"]), make.record(0, pruner="taylor")
    alone = gather(make.sources(beside))
    assert names(alone)[-2:] == ["contrastive", "taylor"]
    both = gather(make.sources(beside, own))
    (trial,) = both.runs(MAIN, named(both, "taylor"))
    assert trial.source.name == "run 1"


def test_figures_are_means_and_pairs_over_seeds(compared: Comparison) -> None:
    kmeans, reference = named(compared, "kmeans"), compared.reference
    mine = compared.series(MAIN, kmeans, "cmmd_evaluator")
    theirs = compared.series(MAIN, reference, "cmmd_evaluator")
    assert compared.interval(MAIN, kmeans, "cmmd_evaluator") == interval(mine.values())
    expected = interval(mine[seed] - theirs[seed] for seed in (0, 1, 2))
    assert compared.difference(MAIN, kmeans, reference, "cmmd_evaluator") == expected


def test_budgets_are_places_of_one_method(make: SimpleNamespace) -> None:
    found = gather(make.sources(*[r for b in (0.5, 0.66) for r in make.study(2, budget=b)], *make.study(3, budget=0.8)))
    assert found.settings == [Setting("A", 0.5), Setting("A", 0.66), Setting("A", 0.8)]
    assert names(found, found.settings[0]) == names(found, found.settings[2])
    assert found.main == Setting("A", 0.8)  # the most seeds


def test_other_protocols_are_refused_by_what_differs(make: SimpleNamespace) -> None:
    runs = make.sources(make.record(0), make.record(0, recover__steps=400))
    with pytest.raises(RequestError, match=r"2 protocols.* recover\.steps \(100 in 'run 0', 400 in 'run 1'\).*--mixed"):
        gather(runs)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.prompts": 60},
        {"evaluate.guidance": 2.0},
        {"evaluate.exam": 64},
        {"recover.per": "expert"},
        {"recover.caption_dropout": 0.0},
        {"recover.weights": {"denoising": 0.01, "distillation": 0.0, "blocks": 0.5}},
        {"adapt.steps": 5},
        {"prepare.flips": True},
        {"data": {"name": "scenes", "seed": 3}},
        {"metrics": ["cmmd"]},
        {"budget": "params:0.66"},
    ],
)
def test_what_belongs_to_the_protocol(changes: dict, make: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match="2 protocols"):
        gather(make.sources(make.record(0), make.record(0, **changes)))


def test_what_the_record_alone_tells_belongs_to_it_too(make: SimpleNamespace) -> None:
    other = make.record(1)
    other.data["training_pictures"] = 100
    with pytest.raises(RequestError, match=r"data\.training_pictures \(2048 in 'run 0', 100 in 'run 1'\)"):
        gather(make.sources(make.record(0), other))
    other = make.record(1)
    other.model = "another"
    with pytest.raises(RequestError, match="differ in model"):
        gather(make.sources(make.record(0), other))


def test_a_search_and_its_length_do_not(make: SimpleNamespace) -> None:
    found = gather(make.sources(make.record(0), make.record(0, search__steps=160), make.record(0, pruner="taylor")))
    assert not found.mixed
    assert "contrastive, search.steps=160" in names(found)


def test_mixed_protocols_get_letters_and_pairs_stay_within_one(make: SimpleNamespace) -> None:
    longer = [make.record(s, recover__steps=400, **row) for s in range(3) for row in ({}, {"pruner": "taylor"})]
    found = gather(make.sources(*make.study(), *longer), mixed=True)
    assert list(found.protocols) == ["A", "B"]
    assert found.settings == [MAIN, Setting("B", 0.66)]
    taylor, other = named(found, "taylor"), Setting("B", 0.66)
    assert found.label(MAIN, taylor) == "taylor [A]"
    assert found.label(other, taylor) == "taylor, recover.steps=400 [B]"
    assert named(found, "kmeans") not in found.methods(other)
    assert found.seeds(other, named(found, "dense")) == [0, 1, 2]
    within = found.difference(other, taylor, found.reference, "cmmd_evaluator")
    mine, theirs = (found.series(other, m, "cmmd_evaluator") for m in (taylor, found.reference))
    assert within == interval(mine[s] - theirs[s] for s in mine)


def test_an_older_record_that_lacks_a_setting_has_its_default(make: SimpleNamespace) -> None:
    old = make.record(1)
    del old.config["recover"]["joint"], old.config["evaluate"]["dense_steps"]
    found = gather(make.sources(make.record(0), old))
    assert found.seeds(MAIN, found.reference) == [0, 1]


def test_nothing_to_compare(make: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match=r"none of the runs is finished.*'x' failed: boom"):
        gather([], [Failure("x", "boom")])
    bare = make.record(0)
    bare.results = bare.results[:1]
    with pytest.raises(RequestError, match="no row of a pruned method"):
        gather(make.sources(bare))


def test_a_run_is_read_from_its_folder_and_from_a_copy_of_its_record(make: SimpleNamespace, tmp_path: Path) -> None:
    record = make.record(0)
    (tmp_path / "run").mkdir()
    record.save(tmp_path / "run/record.json")
    record.save(tmp_path / "copy.json")
    folder, copy = read_source(tmp_path / "run"), read_source(tmp_path / "copy.json")
    assert isinstance(folder, Source)
    assert folder.folder == tmp_path / "run"
    assert copy.folder is None
    assert united([copy, folder]) == united([folder, copy]) == [folder]
    with pytest.raises(RequestError, match="are the same run"):
        united([folder, folder])


@pytest.mark.parametrize("status", ["running", "failed"])
def test_unfinished_runs_are_refused_and_failed_ones_kept_as_such(status: str, tmp_path: Path) -> None:
    record = Record(status=status, error="ValueError: boom\nand more", started="", config={}, versions={}, hardware={})
    record.save(tmp_path / "record.json")
    if status == "failed":
        assert read_source(tmp_path) == Failure(str(tmp_path), "ValueError: boom")
    else:
        with pytest.raises(RequestError, match="is not finished"):
            read_source(tmp_path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no record\.json"):
        read_source(tmp_path)
    with pytest.raises(RequestError, match="does not exist"):
        read_source(tmp_path / "nowhere")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RequestError, match="is not the record of a run"):
        read_source(tmp_path / "x.json")


def test_a_key_that_an_older_record_lacks_means_what_it_meant_then(make: SimpleNamespace) -> None:
    new, old, single = make.record(0), make.record(1), make.record(1, pruner="taylor")
    for record in (old, single):
        del record.config["search"]["start"], record.config["evaluate"]["exam"]
    found = gather(make.sources(new, make.record(1), old, single))
    assert names(found)[-3:] == ["contrastive", "contrastive, search.start=null", "taylor"]
    assert {row.config["evaluate.exam"] for row in found.rows} == {"128"}
    for record in (old, single):
        del record.config["recover"]["restart"]
    assert names(gather(make.sources(new, old, single)))[-2:] == [
        "contrastive, search.start=null, recover.restart=true",
        "taylor",
    ], "a single model has one phase"
    several = [make.record(seed) for seed in range(2, 5)]
    for record in several:
        del record.config["recover"]["restart"]
    found = gather(make.sources(new, *several))
    assert names(found)[-2:] == ["contrastive", "contrastive, recover.restart=true"], "what is done today is the usual"
    assert gather(make.sources(*several)).naming.shared()["recover.restart"] == "true", "and is told where it is not"
    bare = make.record(1)
    del bare.config["search"]
    assert names(gather(make.sources(new, bare)))[-1] == "contrastive"
