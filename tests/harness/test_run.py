"""A run from its configuration to its report."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from PIL import Image

import aptp
from aptp.config import RunConfig
from aptp.core.architecture import Architecture
from aptp.core.calibration import expected_cost
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run
from aptp.harness.evaluate import save_picture
from aptp.harness.workspace import Workspace
from aptp.host import default_host


def again(config: RunConfig, out: Path, resume: bool = False) -> Record:
    return run(config, out, resume=resume, host=default_host(), progress=Quiet())


def gates(out: Path) -> torch.Tensor:
    return torch.stack([Architecture.load(f).gates for f in sorted(out.glob("experts/*/architecture.json"))])


def test_leaves_every_artifact(finished) -> None:
    assert finished.record.status == "done"
    assert finished.record.error is None
    assert (finished.out / "config.yaml").read_text() == finished.config.to_yaml()
    for name in ("router/router.json", "router/router.safetensors", "router/space.json", "report.html"):
        assert (finished.out / name).is_file(), name
    for folder in ("real", "dense", "contrastive+sinkhorn"):
        assert len(list((finished.out / "samples" / folder).glob("*.png"))) == 12
    static = finished.out / "baselines" / "magnitude"
    assert Record.load(static / "record.json").status == "done"
    assert len(list((static / "samples" / "magnitude").glob("*.png"))) == 12
    assert [path.name for path in finished.out.rglob(".*")] == [".lock"], "a temporary file was left"


def test_pictures_are_on_the_disk_before_a_run_is_done(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is done draws none of them again."""
    out, synced, missing = tmp_path / "run", set(), []
    pictures = [out / place / "dense/000.png" for place in ("samples", "gallery", "baselines/magnitude/samples")]
    save = Record.save

    def stages(work: Workspace) -> None:
        for picture in pictures:
            save_picture(Image.new("RGB", (2, 2)), picture)

    def watched(record: Record, path: Path) -> None:
        if record.status == "done":
            missing.append({picture for picture in pictures if picture.stat().st_ino not in synced})
        save(record, path)

    monkeypatch.setattr("os.fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Record, "save", watched)
    monkeypatch.setitem(run.__globals__, "_stages", stages)
    monkeypatch.setitem(run.__globals__, "write_report", lambda out: None)
    assert again(small_config, out) == Record.load(out / "record.json")
    assert missing == [set()]


def test_writes_no_format_that_runs_code(finished) -> None:
    kinds = {file.suffix for file in finished.out.rglob("*") if file.is_file() and file.name != ".lock"}
    assert kinds <= {".yaml", ".json", ".jsonl", ".safetensors", ".png", ".html"}


def test_logs_have_a_line_a_step(finished) -> None:
    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (finished.out / name).read_text().splitlines()]

    assert [line["step"] for line in lines("logs/search.jsonl")] == list(range(20))
    for name in ("logs/recover.jsonl", "baselines/magnitude/logs/recover.jsonl"):
        assert [line["step"] for line in lines(name)] == list(range(12))
    assert [line["phase"] for line in lines("logs/recover.jsonl")] == ["joint"] * 6 + ["own"] * 6


def test_experts_are_stock_models_of_the_recorded_size(finished) -> None:
    kept = gates(finished.out)
    assert len(kept) == 3
    assert len(kept.unique(dim=0)) == 3
    for expert in finished.record.experts:
        model = aptp.load_expert(finished.out / "experts" / f"{expert.index:02d}")
        assert type(model).__name__ == "UNet2DConditionModel"
        assert sum(parameter.numel() for parameter in model.parameters()) == expert.parameters
        assert expert.cost == pytest.approx(expert.fraction * finished.record.budget.dense)


def test_gallery_names_pictures_that_are_there(finished) -> None:
    gallery = json.loads((finished.out / "gallery/gallery.json").read_text())
    names = ["real", "dense", "expert 0", "expert 1", "expert 2", "magnitude"]
    assert [column["name"] for column in gallery["columns"]] == names
    for column in gallery["columns"]:
        assert len(list((finished.out / column["folder"]).glob("*.png"))) == len(gallery["prompts"])
    kinds = [prompt["kind"] for prompt in gallery["prompts"]]
    assert len(kinds) == len(set(kinds)) >= 4, "one prompt of each kind that was evaluated"


def test_meets_the_budget_on_training_prompts(finished, base: Workspace) -> None:
    budget, kept = finished.record.budget, gates(finished.out)
    load = torch.tensor([expert.training_load for expert in finished.record.experts]).double()
    expected = expected_cost(base.cost_model, kept, load)
    assert budget.expected == pytest.approx(expected)
    level = 0.0
    for index, row in enumerate(kept):
        flipped = (row - torch.eye(len(row))).abs()
        jumps = base.cost_model.fraction(flipped) - base.cost_model.fraction(row)
        level = max(level, float(jumps.abs().max() * load[index]))
    assert abs(expected - budget.target) <= max(0.01 * budget.target, level / 2)
    assert load.sum() == pytest.approx(1)
    assert sum(expert.validation_load for expert in finished.record.experts) == pytest.approx(1)


def test_rows_are_comparable(finished) -> None:
    dense, routed, static = finished.record.results
    assert [row.name for row in finished.record.results] == ["dense", "contrastive+sinkhorn", "magnitude"]
    assert routed.training_steps == static.training_steps == finished.config.recover.steps
    assert (dense.search_steps, routed.search_steps, static.search_steps) == (0, finished.config.search.steps, 0)
    assert set() < set(dense.metrics) < set(routed.metrics) == set(static.metrics)
    floors = {name: value for name, value in dense.metrics.items() if name.endswith(("_floor", "_real"))}
    assert floors.items() <= routed.metrics.items()
    for row in (routed, static):
        assert row.fraction < 1
        assert row.macs < dense.macs
        assert row.parameters < dense.parameters
        assert row.peak_memory_mb < dense.peak_memory_mb
        assert row.teacher_error > dense.teacher_error == 0
        assert (finished.out / row.samples).is_dir()


def test_refuses_a_directory_that_is_not_its_own(finished, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="belongs to another configuration"):
        again(finished.config.model_copy(update={"seed": 1}), finished.out, resume=True)
    with pytest.raises(RequestError, match="add --resume"):
        again(finished.config, finished.out)
    foreign = tmp_path / "notes"
    foreign.mkdir()
    (foreign / "todo.txt").write_text("buy milk")
    with pytest.raises(RequestError, match="not empty and no run directory"):
        again(finished.config, foreign)
    with pytest.raises(RequestError, match="no run directory"):
        again(finished.config, foreign / "todo.txt")
    assert [file.name for file in foreign.iterdir()] == ["todo.txt"]


@pytest.mark.parametrize("file", ["record.json", "config.yaml"])
def test_a_damaged_directory_is_one_sentence(finished, tmp_path: Path, file: str) -> None:
    shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "*.safetensors"))
    text = (tmp_path / "run" / file).read_text()
    (tmp_path / "run" / file).write_text(text[: len(text) // 2] + " [")
    with pytest.raises(RequestError) as caught:
        again(finished.config, tmp_path / "run", resume=True)
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_process_at_a_time_carries_out_a_run(
    finished, small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("aptp.harness.run"), "LOCK_SECONDS", 0.0)
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(RequestError, match=r"run' is going on; wait for it or stop it\."):
        again(small_config, out, resume=True)
    copied = shutil.copytree(finished.out, tmp_path / "copied")
    for _ in range(2):
        assert again(finished.config, copied, resume=True).status == "done"


def test_a_file_system_without_locks_is_told_of(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    harness_run, seen = importlib.import_module("aptp.harness.run"), []
    monkeypatch.setattr(harness_run.FileLock, "acquire", refuse)
    monkeypatch.setattr(harness_run, "_carry_out", lambda work: seen.append(work.record.warnings))
    again(small_config, tmp_path / "run")
    assert "cannot be locked (No locks available): see that no other process carries out this run." in seen[0][0]


@pytest.mark.parametrize("file", ["architecture.json", "config.json", "expert.safetensors"])
def test_a_run_that_lost_an_expert_is_not_called_whole(finished, tmp_path: Path, file: str) -> None:
    copied = shutil.copytree(finished.out, tmp_path / "copied")
    (copied / "experts/01" / file).unlink()
    for use in (lambda: again(finished.config, copied, resume=True), lambda: aptp.load(copied, device="cpu")):
        with pytest.raises(RequestError, match=f"has lost 'experts/01/{file}'; put it back, or make the run anew"):
            use()


def test_an_expert_that_is_cut_short_is_noticed_before_it_is_needed(finished, tmp_path: Path) -> None:
    copied = shutil.copytree(finished.out, tmp_path / "copied")
    weights = copied / "experts/01/expert.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(RequestError, match=r"01/expert\.safetensors' is damaged \(.*\); put back what it was\."):
        aptp.load(copied, device="cpu")


def test_a_finished_run_is_not_done_twice(finished, tmp_path: Path) -> None:
    out = shutil.copytree(finished.out, tmp_path / "run")
    files = [file for file in out.rglob("*") if file.is_file() and file.name != "report.html"]
    before = {file: file.stat().st_mtime_ns for file in files}
    start = time.process_time()
    assert again(finished.config, out, resume=True) == finished.record
    assert time.process_time() - start < 5
    assert {file: file.stat().st_mtime_ns for file in files} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "macs:0.05"}, "under the floor"),
        ({"experts": 61}, r"61 experts are more than the \d+ different training prompts"),
        ({"experts": 3, "prepare": {"train": 2}}, r"3 experts are more than the [12] different training prompts"),
        ({"compare": ["random", "random"]}, "'random' more than once"),
        ({"router": "constant"}, "serves one expert, not 3"),
        ({"router": "kmeans", "balancer": "load"}, "'kmeans' learns no routes for it to move"),
    ],
)
def test_refuses_before_any_work(finished, tmp_path: Path, changes: dict, words: str) -> None:
    config = RunConfig.model_validate(finished.config.model_dump() | changes).resolved(default_host())
    with pytest.raises(RequestError, match=words):
        again(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pruner_makes_its_run_static(small_config: RunConfig) -> None:
    asked = {"pruner": "magnitude", "compare": ["magnitude", "random"]}
    config = RunConfig.model_validate(small_config.model_dump() | asked).settled()
    assert (config.experts, config.router.name, config.balancer.name) == (1, "constant", "none")
    assert [pruner.name for pruner in config.compare] == ["random"]
    assert config.settled() == config


class Stopped(Exception):
    """Raised as the first picture would be encoded."""


class Watched(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, description: str, total: int):
        if description == "encoding training pictures":
            raise Stopped
        return super().task(description, total)


def test_says_what_it_encodes_before_it_does(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = small_config.prepare.model_copy(update={"cache": str(tmp_path / "cache")})
    config, progress = small_config.model_copy(update={"prepare": prepare}), Watched()
    with pytest.raises(Stopped):
        run(config, tmp_path / "run", host=default_host(), progress=progress)
    assert progress.said[0].startswith("80 pictures and ")
    assert " captions are to be encoded, " in progress.said[0]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(RequestError, match="where 0 MB are free: make room, name another folder"):
        run(config, tmp_path / "run", resume=True, host=default_host(), progress=progress)


def test_a_failed_run_says_so(small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("aptp.harness.run"), "_prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        again(small_config, tmp_path / "run")
    record = Record.load(tmp_path / "run/record.json")
    assert (record.status, record.error) == ("failed", "KeyboardInterrupt: ")


def test_data_that_changed_is_noticed(finished, small_config: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(finished.config.to_yaml())
    begun = finished.record.model_copy(update={"status": "running", "data": {"fingerprint": "another"}})
    begun.save(out / "record.json")
    with pytest.raises(RequestError, match="the data 'scenes' has changed since"):
        again(small_config, out, resume=True)


def test_a_router_that_learns_nothing_blames_no_search(small_config: RunConfig, tmp_path: Path) -> None:
    asked = {"router": "random-codes", "balancer": "none", "compare": [], "relaxation": {"offset": 3.0}}
    config = RunConfig.model_validate(small_config.model_dump() | asked | {"search": {"start": None}})
    record = again(config.resolved(default_host()), tmp_path / "run")
    assert abs(record.budget.uncalibrated / 0.7 - 1) > 0.05
    assert record.budget.expected == pytest.approx(0.7, rel=0.01)
    assert not [text for text in record.warnings if "the search ended" in text]
