"""What is marked as the best, and what is said of training that did not pay."""

from __future__ import annotations

from types import SimpleNamespace

from aptp.core.record import Record
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.tables import Grid, core_table, training_table
from aptp.report.comparison.trials import Setting

MAIN = Setting("A", 0.66)


def own(records: list[Record], name: str) -> list[Record]:
    """The runs whose own method that is."""
    return [record for record in records if record.results[-1].name == name]


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
