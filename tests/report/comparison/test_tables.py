"""What is marked as the best, and what is said of training that did not pay."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from aptp.core.record import Record
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.tables import Cell, Grid, ablation_table, core_table, differences_table, training_table
from aptp.report.comparison.trials import Setting

MAIN = Setting("A", 0.66)


def own(records: list[Record], name: str) -> list[Record]:
    """The runs whose own method that is."""
    return [record for record in records if record.results[-1].name == name]


def cell(grid: Grid, row: str, column: str) -> Cell:
    """That of a row, in the column with this label."""
    place = [head.label for head in grid.heads].index(column)
    return next(cells[place] for cells in grid.rows if cells[0].text == row)


def best(grid: Grid, column: str) -> list[str]:
    """The methods that are marked in a column."""
    place = [head.label for head in grid.heads].index(column)
    return [row[0].text for row in grid.rows if row[place].best]


def test_the_best_latency_is_the_best_share_of_dense_in_the_same_run(make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in own(records, "taylor"):  # a faster machine
        record.results[0].latency_ms, record.results[-1].latency_ms = 10.0, 9.9
    for record in own(records, "magnitude"):
        record.results[0].latency_ms, record.results[-1].latency_ms = 100.0, 50.0
    assert best(core_table(gather(make.sources(*records)), MAIN), "latency") == ["magnitude"]


def test_what_misses_the_budget_or_has_fewer_seeds_is_not_the_best(make: SimpleNamespace) -> None:
    records = [*make.study(3), make.record(0, pruner="obs")]
    for record in records:
        figures = {"taylor": 0.2, "magnitude": 0.1, "obs": 0.01}
        record.results[-1].metrics["cmmd_evaluator"] = figures.get(record.results[-1].name, 0.3)
    assert best(core_table(gather(make.sources(*records)), MAIN), "CMMD") == ["magnitude"]
    for record in own(records, "magnitude"):
        record.results[-1].fraction = 0.75
    assert best(core_table(gather(make.sources(*records)), MAIN), "CMMD") == ["taylor"]


def test_training_that_does_not_pay_in_every_seed(make: SimpleNamespace) -> None:
    records = make.study(3)
    for record in own(records, "taylor")[:1] + own(records, "magnitude"):
        record.results[-1].latency_ms = record.results[0].latency_ms * 2
    notes = {row[0].text: row[4].note for row in training_table(gather(make.sources(*records)), MAIN).rows}
    assert (notes["taylor"], notes["magnitude"], notes["kmeans"]) == ("not in every seed", "no time saved", "")


@pytest.mark.parametrize(
    ("key", "label", "figure", "texts"),
    [
        ("cmmd_evaluator", "CMMD", 0.2, ("−0.100 better", "−0.125 to −0.075")),
        ("cmmd_evaluator", "CMMD", 0.4, ("+0.100 worse", "+0.075 to +0.125")),
        ("clip_score_evaluator", "CLIP score", 0.2, ("−0.100 worse", "−0.125 to −0.075")),
        ("clip_score_evaluator", "CLIP score", 0.4, ("+0.100 better", "+0.075 to +0.125")),
        ("cmmd_evaluator", "CMMD", 0.31, ("+0.0100", "−0.0148 to +0.0348")),
    ],
)
def test_a_difference_is_the_methods_less_the_references_and_says_who_is_better(
    key: str, label: str, figure: float, texts: tuple[str, str], make: SimpleNamespace
) -> None:
    """The reference has 0.3 with every seed; the others a figure that is 0.01 less with the first, more with the last.

    The interval's half is then t · s / √n = 4.303 · 0.01 / √3 = 0.0248.
    """
    records = [
        make.record(seed, **row) for seed in range(3) for row in ({}, {"router": "kmeans"}, {"pruner": "taylor"})
    ]
    for record in records:
        mine = record.results[-1]
        mine.metrics[key] = 0.3 if "contrastive" in mine.name else figure + 0.01 * (record.config["seed"] - 1)
    found = gather(make.sources(*records))
    assert found.reference.name == "contrastive"
    shown = Cell(*texts, best=" " in texts[0])
    assert cell(differences_table(found, MAIN), "taylor", label) == shown
    assert cell(differences_table(found, MAIN), "kmeans", label) == shown
    assert cell(ablation_table(found, MAIN), "router=kmeans", label) == shown


def test_training_is_paid_back_by_the_time_that_pictures_save(make: SimpleNamespace) -> None:
    """A call on 8 inputs takes 200 ms of the dense model's and 160 of the pruned one's: 5 ms less for one input."""
    records = [make.record(seed, pruner="taylor", evaluate__steps=20, evaluate__guidance=3) for seed in range(3)]
    for record in records:
        record.results[0].latency_ms, record.results[-1].latency_ms = 200.0, 160.0
        record.results[-1].training_seconds = 60.0
    (row,) = training_table(gather(make.sources(*records)), MAIN).rows
    assert row[4].text == "300", "60 s, of which a picture with guidance saves 2 · 20 · 5 ms"
