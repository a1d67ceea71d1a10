"""Trackers get the figures of every step once, whether a run was interrupted or not; one that fails is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aptp.config import RunConfig
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run
from aptp.harness.search import search
from aptp.harness.trackers import Trackers
from aptp.harness.workspace import Workspace


def series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds in its files: steps and values by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_log_also_of_a_search_that_went_on(open_work) -> None:
    pytest.importorskip("tensorboard")
    for _ in range(2):  # the second time all steps are found done
        work: Workspace = open_work("run", trackers=["tensorboard"], search={"steps": 3, "batch": 8})
        work.__dict__.pop("trackers", None)
        search(work)
        work.trackers.end(failed=False)
    log = [json.loads(line) for line in work.path("logs/search.jsonl").read_text().splitlines()]
    names = {name for line in log for name in line} - {"step", "total"}
    shown = series(work.path("logs/tensorboard/aptp"))
    assert set(shown) == {f"contrastive+sinkhorn/search/{name}" for name in names}
    for name in names:
        expected = [(line["step"], line[name]) for line in log if name in line]
        found = shown[f"contrastive+sinkhorn/search/{name}"]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5, abs=1e-6)


def test_one_that_does_not_start_is_named(small_config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("a file, where a folder has to be")
    config = small_config.model_copy(update={"trackers": ["tensorboard"]})
    with pytest.raises(RequestError, match=r"^trackers tensorboard: .*Not a directory.*; mend that, or drop"):
        Trackers(config, tmp_path)


def test_a_run_that_they_stop_has_failed(base: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_account(*_: object) -> None:
        raise RequestError("trackers wandb: no account.")

    monkeypatch.setattr("aptp.harness.workspace.Trackers", no_account)
    config = base.config.model_copy(update={"trackers": ["wandb"]})
    with pytest.raises(RequestError, match="no account"):
        run(config, tmp_path / "run", host=base.host, progress=Quiet())
    record = Record.load(tmp_path / "run/record.json")
    assert record.status == "failed"
    assert "no account" in record.error


class NoRoom:
    """A tracker that fails as it is ended."""

    def __init__(self, *_: object) -> None:
        self.ended: list[bool] = []

    def end(self, failed: bool) -> None:
        self.ended.append(failed)
        raise OSError("no room")


@pytest.mark.parametrize("error", [RuntimeError("the run's own"), None])
def test_one_that_cannot_end_fails_the_run_and_hides_no_other_error(
    base: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def stages(work: Workspace) -> None:
        if error:
            raise error

    tracker = NoRoom()
    monkeypatch.setattr("aptp.harness.workspace.Trackers", lambda *_: tracker)
    monkeypatch.setitem(run.__globals__, "_stages", stages)
    config = base.config.model_copy(update={"trackers": ["wandb"]})
    with pytest.raises((RuntimeError, OSError), match="own" if error else "no room"):
        run(config, tmp_path / "run", host=base.host, progress=Quiet())
    record = Record.load(tmp_path / "run/record.json")
    assert (record.status, record.error) == ("failed", "RuntimeError: the run's own" if error else "OSError: no room")
    assert tracker.ended[-1] is True


def test_one_that_is_not_there_is_refused(
    small_config: RunConfig, base: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aptp.config.find_spec", lambda name: None)
    config = RunConfig.model_validate(small_config.model_dump() | {"trackers": ["wandb"]})
    with pytest.raises(RequestError, match=r"trackers names 'wandb'.*pip install 'aptp\[wandb\]'"):
        config.resolved(base.host)
