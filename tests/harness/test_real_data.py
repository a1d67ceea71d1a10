"""Whole runs on pictures in the layout of COCO: several captions, missing and broken pictures, an adapted model."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import aptp
from aptp.config import RunConfig
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run, training
from aptp.harness.checkpoint import Checkpoint
from aptp.host import default_host
from aptp.models import load_pipeline, pipeline_fingerprint

Write = Callable[..., Path]


def begin(config: RunConfig, out: Path, resume: bool = False) -> Record:
    return run(config, out, resume=resume, host=default_host(), progress=Quiet())


@pytest.fixture(scope="module")
def coco(write_coco: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 8 training pictures one is missing, one broken, one cut short."""
    root = write_coco(tmp_path_factory.mktemp("coco"), train=8, validation=9)
    names = sorted((root / "train2014").iterdir())
    names[1].unlink()
    names[3].write_bytes(b"no picture")
    names[5].write_bytes(names[5].read_bytes()[:-200])
    return root


@pytest.fixture(scope="module")
def config(small_config: RunConfig, coco: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    changes = {
        **small_config.model_dump(mode="json"),
        "data": {"name": "coco", "path": str(coco), "validation": 6},
        "prepare": {"cache": str(tmp_path_factory.mktemp("cache"))},
        "experts": 2,
        "adapt": {"steps": 2, "batch": 4},
        "search": {"steps": 4, "batch": 4, "start": None},
        "recover": {"steps": 4, "batch": 4},
        "evaluate": {"prompts": 4, "steps": 1, "batch": 4, "gallery": 1, "exam": 4},
        "compare": [],
        "metrics": [{"name": "clip-score"}],
    }
    return RunConfig.model_validate(changes).resolved(default_host())


@pytest.fixture(scope="module")
def done(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    begin(config, out)
    return out


def test_the_record_counts_and_lists_what_was_used_and_what_not(done: Path) -> None:
    record = Record.load(done / "record.json")
    assert record.status == "done"
    data = record.data
    assert (data["training_pictures"], data["training_captions"]) == (5, 15)
    assert (data["validation_pictures"], data["validation_captions"]) == (6, 6)
    assert data["skipped_count"] == 3
    of_number = {int(name[-7:-4]): reason for name, reason in data["skipped"].items()}
    assert of_number[2] == "the file is missing"
    assert "does not open as a picture: cannot identify" in of_number[4]
    assert "truncated" in of_number[6]
    assert any("left out of the data: 3, listed in data/skipped.jsonl" in warning for warning in record.warnings)
    for name, key in (("train", "training_list"), ("validation", "validation_list")):
        assert hashlib.sha256((done / "data" / f"{name}.jsonl").read_bytes()).hexdigest() == data[key]
    lines = [json.loads(line) for line in (done / "data" / "train.jsonl").read_text().splitlines()]
    assert {line["picture"][-5] for line in lines} == set("13578")
    assert {line["caption"] for line in lines} >= {f"train picture 1, said {k}." for k in range(3)}
    page = (done / "report.html").read_text()
    assert "Skipped data: 3 pictures" in page
    assert data["training_list"] in page


def test_the_adapted_model_is_teacher_and_start(done: Path, config: RunConfig) -> None:
    """What was pruned, and what serves beside the experts."""
    adapted = load_pipeline(str(done / "model"), "cpu")
    assert pipeline_fingerprint(adapted) != pipeline_fingerprint(load_pipeline(config.model, "cpu"))
    router = json.loads((done / "router" / "router.json").read_text())
    assert router["model_fingerprint"] == pipeline_fingerprint(adapted)
    assert aptp.load(done)(["train picture 1"], num_inference_steps=1, seed=0).images


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_captions(
    done: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)
    checkpoint = Checkpoint.save

    def stop_after_two(self, step: int) -> None:
        checkpoint(self, step)
        if self.path.name == "search.safetensors" and step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(Checkpoint, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            begin(config, tmp_path / "run")
    assert begin(config, tmp_path / "run", resume=True).data == Record.load(done / "record.json").data
    for name in ("logs/search.jsonl", "logs/recover.jsonl", "data/train.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes(), name


def test_data_that_changed_is_not_gone_on_with(done: Path, config: RunConfig, coco: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(done, tmp_path / "run"))
    record = Record.load(out / "record.json")
    record.model_copy(update={"status": "failed"}).save(out / "record.json")
    file = coco / "val2014" / "COCO_val2014_000000000001.jpg"
    whole = file.read_bytes()
    try:
        file.unlink()
        with pytest.raises(RequestError, match="the data 'coco' has changed since"):
            begin(config, out, resume=True)
    finally:
        file.write_bytes(whole)
