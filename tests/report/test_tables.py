from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aptp.core.record import Record, Result
from aptp.report import summary_table
from aptp.report.measures import method_of, metric_measures
from aptp.report.tables import experts_table, key_figures, methods_table, payback
from aptp.report.wording import alike, amount, conclusion, duration, number, reach, signed


@pytest.fixture(scope="session")
def folder(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def record(folder: Path) -> Record:
    return Record.load(folder / "record.json")


def test_methods_table_agrees_with_the_record(record: Record) -> None:
    heads, rows = methods_table(record)
    labels = [head.label for head in heads]
    assert all(len(row) == len(heads) for row in rows)
    for result, row in zip(record.results, rows, strict=True):
        cell = dict(zip(labels, row, strict=True))
        assert cell["method"].text == result.name
        assert float(cell["cost"].text.rstrip("%")) == pytest.approx(100 * result.fraction, abs=0.05)
        assert float(cell["MACs"].text.split()[0]) == pytest.approx(result.macs / 1e6, rel=5e-3)
        assert float(cell["latency"].text.split()[0]) == pytest.approx(result.latency_ms, rel=5e-3)
        assert float(cell["teacher error"].text) == pytest.approx(result.teacher_error, rel=5e-3)
        assert float(cell["CMMD"].text) == pytest.approx(result.metrics["cmmd_evaluator"], rel=5e-3)
        assert float(cell["CLIP score"].text) == pytest.approx(result.metrics["clip_score_evaluator"], rel=5e-3)
    cmmd = heads[labels.index("CMMD")]
    assert cmmd.arrow == "↓"
    assert "floor: 0.400" in cmmd.notes
    clip = heads[labels.index("CLIP score")]
    assert clip.arrow == "↑"
    assert "real: 27.3" in clip.notes


def test_best_pruned_is_marked_and_dense_never(record: Record) -> None:
    heads, rows = methods_table(record)
    winners = {
        head.label: [row[0].text for row in rows if row[place].best]
        for place, head in enumerate(heads)
        if any(row[place].best for row in rows)
    }
    assert winners == {
        "latency": ["contrastive+sinkhorn"],
        "peak memory": ["contrastive+sinkhorn"],
        "teacher error": ["contrastive+sinkhorn"],
        "CMMD": ["random"],
        "Fréchet distance": ["random"],
        "CLIP score": ["magnitude"],
    }


def test_conclusion_says_who_is_behind(record: Record) -> None:
    first, second = conclusion(record)
    assert "64.8% of the dense MACs (target 66%)" in first
    assert "ahead on teacher error (0.00470 against magnitude 0.00710)" in second
    assert "behind on CMMD" in second
    assert "CLIP score (21.4 against magnitude 24.2)" in second


def test_conclusion_turns_with_the_figures(record: Record) -> None:
    record.results[1].teacher_error = 0.02
    record.results[1].metrics["cmmd_evaluator"] = 0.1
    record.results[1].metrics["frechet_evaluator"] = record.results[3].metrics["frechet_evaluator"]
    second = conclusion(record)[1]
    ahead, rest = second.split("; level on ")
    level, behind = rest.split("; behind on ")
    assert "CMMD" in ahead
    assert "Fréchet" in level
    assert "teacher error" in behind


def test_conclusion_without_rivals_compares_with_dense(record: Record) -> None:
    record.results = record.results[:2]
    second = conclusion(record)[1]
    assert "dense model" in second
    assert "behind on CMMD (0.375 against 0.310)" in second
    assert "teacher error" not in second


def test_slower_pruned_model_is_not_called_faster(record: Record) -> None:
    record.results[1].latency_ms = 2 * record.results[0].latency_ms
    assert "a call takes 100% more time" in conclusion(record)[0]
    assert "nothing is paid back" in payback(record)


def test_payback_counts_calls_with_guidance(record: Record) -> None:
    dense, method = record.results[:2]
    saved = 30 * (dense.latency_ms - method.latency_ms) / 8 / 1000
    assert f"about {round(method.training_seconds / saved):,} pictures" in payback(record)


def test_what_experts_take_on_disk_is_a_key_figure_where_it_is_known(record: Record) -> None:
    assert "parameters of" in key_figures(record)[-1][0]
    record.results[0].disk_mb, method_of(record).disk_mb = 16.6, 28.0
    count = len(record.experts)
    assert key_figures(record)[-1] == (f"{count} experts on disk", "28.0 MB", "dense: 16.6 MB")


def test_metrics_of_strangers_are_read_by_their_companions() -> None:
    figures = {"own": 1.0, "far": 2.0, "far_floor": 1.0, "near": 3.0, "near_real": 4.0, "lonely_floor": 5.0}
    result = Result(name="x", fraction=1, macs=1, parameters=1, training_steps=0, training_seconds=0, metrics=figures)
    found = {measure.key: measure.less for measure in metric_measures([result])}
    assert found == {"own": None, "far": True, "near": False, "lonely_floor": None}


def test_what_the_first_distance_is_to_the_dense_model_comes_last() -> None:
    figures = {
        "cmmd_x": 2.0,
        "cmmd_x_floor": 1.0,
        "clip_score_x": 3.0,
        "cmmd_x_to_dense": 0.1,
        "frechet_x_to_dense": 0.2,
    }
    result = Result(name="x", fraction=1, macs=1, parameters=1, training_steps=0, training_seconds=0, metrics=figures)
    *_, last = found = metric_measures([result])
    assert [measure.key for measure in found] == ["cmmd_x", "clip_score_x", "cmmd_x_to_dense"]
    assert (last.label, last.detail, last.less, last.of(result)) == (
        "CMMD to dense",
        "same prompts and noise",
        True,
        0.1,
    )


def test_value_that_is_not_a_number_is_never_best(record: Record) -> None:
    record.results[3].metrics["cmmd_evaluator"] = math.nan
    heads, rows = methods_table(record)
    place = [head.label for head in heads].index("CMMD")
    assert [row[0].text for row in rows if row[place].best] == ["contrastive+sinkhorn"]


def test_experts_table_agrees_with_the_record(record: Record) -> None:
    rows = experts_table(record)
    assert [row["cost"] for row in rows] == [f"{100 * expert.fraction:.1f}%" for expert in record.experts]
    assert rows[0]["examples"] == record.routing["examples"]["0"]


def test_summary_has_a_row_a_method_and_no_floors(record: Record) -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(record))
    text = console.export_text()
    assert "floor" not in text
    assert "half" not in text
    for result in record.results:
        line = next(line for line in text.splitlines() if line.startswith(result.name))
        assert f"{100 * result.fraction:.1f}%" in line
        assert number(result.metrics["clip_score_evaluator"]) in line


def test_summary_needs_no_matplotlib() -> None:
    code = "import sys; from aptp.report import summary_table; sys.exit(any(x in sys.modules for x in sys.argv))"
    assert subprocess.run([sys.executable, "-c", code, "matplotlib", "torch"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00471, "0.00471"), (12.345, "12.3"), (9151.3, "9,151"), (1e-6, "1.00e-06"), (None, "–")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_amounts_and_durations() -> None:
    assert amount(90.5e9) == "90.5 G"
    assert amount(512) == "512"
    assert duration(65) == "1 min 05 s"
    assert duration(3 * 3600 + 60) == "3 h 01 min"


def test_differences_have_signs_and_like_places() -> None:
    assert (signed(0.00471), signed(-12.345), signed(0.0), signed(None)) == ("+0.00471", "−12.3", "0", "–")
    assert alike(-0.0000503, 0.0000274, -0.000073) == ["−0.0000503", "+0.0000274", "−0.0000730"]
    assert alike(0.0, 0.0) == ["+0", "+0"]
    assert reach(-1.5, 1234.5) == "−2 to +1,234"
    assert reach(None, 1.0) == "–"
