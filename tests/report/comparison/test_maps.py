"""What figures and tables say of the experts: those of each seed in order of their cost, whatever their numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.record import Expert, Record
from aptp.report.comparison.gathering import gather
from aptp.report.comparison.maps import _cross, _kinds
from aptp.report.comparison.tables import Grid, experts_table
from aptp.report.comparison.trials import Comparison, Setting, Trial

MAIN = Setting("A", 0.66)
COSTS = ([0.7, 0.9, 0.5], [0.6, 0.52, 0.8])
LOADS = ([0.3, 0.6, 0.1], [0.4, 0.1, 0.5])
KINDS = ({"plain": [1, 2, 7], "word": [6, 3, 1]}, {"plain": [1, 8, 1], "word": [4, 0, 16]})
ERRORS = (
    [[11.0, 12.0, 13.0], [21.0, 22.0, 23.0], [31.0, 32.0, 33.0]],
    [[1.0, 2.0, None], [4.0, 5.0, None], [7.0, 8.0, None]],
)


def two_seeds(make: SimpleNamespace) -> list[Record]:
    """Runs whose experts are in unlike orders of cost: 2, 0, 1 and 1, 0, 2. Nobody asks the last one of the second."""
    records = [make.record(seed, experts=3) for seed in range(2)]
    for record, costs, loads, kinds, errors in zip(records, COSTS, LOADS, KINDS, ERRORS, strict=True):
        for expert, cost, load in zip(record.experts, costs, loads, strict=True):
            expert.fraction, expert.training_load, expert.validation_load = cost, 1 / 3, load
        record.routing["kinds"] = {k: {str(i): n for i, n in enumerate(counts)} for k, counts in kinds.items()}
        record.routing["cross"]["teacher_error"] = errors
    return records


def relabelled(record: Record, new: list[int]) -> Record:
    """The same run with its expert i called new[i]."""
    changed, old = record.model_copy(deep=True), np.argsort(new).tolist()
    changed.experts = [Expert(**{**vars(record.experts[i]), "index": place}) for place, i in enumerate(old)]
    changed.routing["kinds"] = {
        kind: {str(new[int(i)]): count for i, count in counts.items()}
        for kind, counts in record.routing["kinds"].items()
    }
    errors = record.routing["cross"]["teacher_error"]
    changed.routing["cross"]["teacher_error"] = [[errors[i][j] for j in old] for i in old]
    return changed


def read(make: SimpleNamespace, records: list[Record]) -> tuple[Comparison, list[Trial]]:
    found = gather(make.sources(*records))
    return found, found.runs(MAIN, found.reference)


def table(comparison: Comparison) -> Grid:
    found = experts_table(comparison, MAIN)
    assert found
    return found


def test_errors_are_those_of_the_drawing_expert_by_row_and_the_prompts_by_column(make: SimpleNamespace) -> None:
    _, trials = read(make, two_seeds(make))
    first = [[33, 31, 32], [13, 11, 12], [23, 21, 22]]
    second = [[5, 4, np.nan], [2, 1, np.nan], [8, 7, np.nan]]
    np.testing.assert_allclose(_cross(trials[:1]), first)
    np.testing.assert_allclose(_cross(trials[1:]), second)
    mean = [[19, 17.5, 32], [7.5, 6, 12], [15.5, 14, 22]]
    np.testing.assert_allclose(_cross(trials), mean, err_msg="the mean of what is known")


def test_kinds_are_shared_out_by_the_experts_in_order_of_cost(make: SimpleNamespace) -> None:
    _, trials = read(make, two_seeds(make))
    names, shares = _kinds(trials)
    assert names == ["plain", "word"]
    np.testing.assert_allclose(shares, [[0.75, 0.1, 0.15], [0.05, 0.4, 0.55]])


def test_costs_and_loads_are_told_in_order_of_cost(make: SimpleNamespace) -> None:
    found, _ = read(make, two_seeds(make))
    (row,) = table(found).rows
    assert [cell.text for cell in row[1:3]] == ["51% · 65% · 85%", "10% · 35% · 55%"]


def test_training_tells_the_loads_where_nothing_was_held_out(make: SimpleNamespace) -> None:
    records = two_seeds(make)
    for record in records:
        for expert in record.experts:
            expert.training_load, expert.validation_load = expert.validation_load, None
    (row,) = table(read(make, records)[0]).rows
    assert row[2].text == "10% · 35% · 55%"


@given(st.permutations(range(3)), st.permutations(range(3)))
def test_the_numbers_of_experts_change_nothing(make: SimpleNamespace, first: list[int], second: list[int]) -> None:
    records = two_seeds(make)
    found, trials = read(make, records)
    again, others = read(make, [relabelled(r, new) for r, new in zip(records, (first, second), strict=True)])
    np.testing.assert_array_equal(_cross(others), _cross(trials))
    np.testing.assert_array_equal(_kinds(others)[1], _kinds(trials)[1])
    assert table(again) == table(found)
