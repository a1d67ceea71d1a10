"""A run whose budget is time, from its table to its check, and on with --resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aptp.config import RunConfig
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run
from aptp.host import default_host

BUDGET = {"name": "latency", "target": 0.8, "batch": 2, "widths": 2, "rounds": 1}


def again(config: RunConfig, out: Path, resume: bool = False) -> Record:
    return run(config, out, resume=resume, host=default_host(), progress=Quiet())


def test_a_budget_of_time_and_its_check(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APTP_CACHE", str(tmp_path / "cache"))
    changes = {"budget": BUDGET, "search": {"steps": 4, "batch": 8}, "recover": {"steps": 0}}
    config = RunConfig.model_validate(small_config.model_dump() | changes).resolved(default_host())
    out = tmp_path / "run"
    record = again(config, out)
    budget = record.budget
    assert (budget.estimator, budget.unit) == ("latency", "milliseconds")
    assert 0 < budget.floor < budget.expected < 1
    for of in (record, Record.load(out / "baselines/magnitude/record.json")):
        off = [abs(expert.fraction / expert.measured - 1) for expert in of.experts]
        assert of.budget.error == pytest.approx(max(off))
        assert bool([text for text in of.warnings if "% off" in text]) == (max(off) > 0.1)
        assert of.costs == record.costs
    assert "timed as shares of the dense" in (out / "report.html").read_text()

    begun = record.model_copy(update={"status": "running"})
    begun.save(out / "record.json")
    on = again(config, out, resume=True)
    assert (on.status, on.costs, on.budget.dense) == ("done", record.costs, budget.dense)
    assert [expert.kept for expert in on.experts] == [expert.kept for expert in record.experts]

    begun.save(out / "record.json")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RequestError, match=r"'latency' finds other costs than when .*another device"):
        again(config, out, resume=True)
    assert Record.load(out / "record.json").costs == record.costs


def test_counted_budgets_are_not_timed(finished) -> None:
    assert finished.record.budget.error is None
    assert all(expert.measured is None for expert in finished.record.experts)
