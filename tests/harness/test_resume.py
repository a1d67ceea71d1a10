"""A run that was killed and resumed is the run that was never stopped, bit for bit, whatever its last checkpoint is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aptp.config import RunConfig
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run
from aptp.harness.checkpoint import before
from aptp.host import default_host

pytestmark = pytest.mark.slow

DRIVER = """
import sys
from pathlib import Path
import faiss, torch
from aptp.config import load_config
from aptp.core.progress import Quiet
from aptp.harness import run, training, workspace
from aptp.host import default_host

torch.set_num_threads(1)
faiss.omp_set_num_threads(1)
training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = 0.0, float("inf")
workspace.KEEP_SECONDS = 0.0
host = default_host()
run(load_config(file=sys.argv[1]).resolved(host), Path(sys.argv[2]), resume=True, host=host, progress=Quiet())
"""
PATIENCE = 300


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def run_until(config: RunConfig, out: Path, log: str, count: int) -> None:
    """Run in another process, and kill that without a warning once the log has so many lines."""
    file = out.parent / "config.yaml"
    file.write_text(config.to_yaml())
    child = subprocess.Popen([sys.executable, "-c", DRIVER, str(file), str(out)])
    deadline = time.monotonic() + PATIENCE
    try:
        while lines(out / log) < count:
            assert child.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, f"{log} has no {count} lines after {PATIENCE} s"
            time.sleep(0.002)
    finally:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert Record.load(out / "record.json").status == "running"


@pytest.fixture(scope="module")
def config(finished) -> RunConfig:
    """The finished run's, but for what comes after recovery."""
    less = finished.config.evaluate.model_copy(update={"prompts": 6, "gallery": 0})
    return finished.config.model_copy(update={"compare": [], "evaluate": less})


@pytest.fixture(scope="module")
def killed_in_search(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed") / "run"
    run_until(config, out, "logs/search.jsonl", 9)
    assert lines(out / "logs/search.jsonl") < config.search.steps
    return out


def test_what_was_killed_counts_its_time(killed_in_search: Path) -> None:
    seconds = Record.load(killed_in_search / "record.json").seconds
    assert list(seconds) == ["prepare", "search"]
    assert seconds["search"] > 0


def damage(checkpoint: Path) -> None:
    """Cut off its end; the one before it is there and stays whole."""
    assert before(checkpoint).exists()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])


def test_two_damaged_checkpoints_are_one_sentence(config: RunConfig, killed_in_search: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(killed_in_search, tmp_path / "run"))
    checkpoint = out / "checkpoints/search.safetensors"
    damage(checkpoint)
    shutil.copy(checkpoint, before(checkpoint))
    with pytest.raises(RequestError, match=r"checkpoint '.*search\.safetensors' is damaged") as caught:
        run(config, out, resume=True, host=default_host(), progress=Quiet())
    assert "\n" not in str(caught.value)


def test_twice_killed_and_resumed_is_the_same_run(finished, config: RunConfig, killed_in_search: Path) -> None:
    out = killed_in_search
    damage(out / "checkpoints/search.safetensors")
    run_until(config, out, "logs/recover-01.jsonl", 1)
    (warning,) = (text for text in Record.load(out / "record.json").warnings if "damaged" in text)
    assert str(out / "checkpoints/search.safetensors") in warning
    assert not (out / "logs/recover.jsonl").exists()
    damage(out / "checkpoints/recover-joint.safetensors")
    record = run(config, out, resume=True, host=default_host(), progress=Quiet())
    assert record.status == "done"
    assert ["recover-joint.safetensors" in text for text in record.warnings if "damaged" in text] == [True]
    for name in ("router/router.safetensors", "router/space.json", "logs/search.jsonl", "logs/recover.jsonl"):
        assert (out / name).read_bytes() == (finished.out / name).read_bytes(), name
    experts = sorted(file.relative_to(out) for file in out.glob("experts/*/*"))
    assert len(experts) == 9
    for name in experts:
        assert (out / name).read_bytes() == (finished.out / name).read_bytes(), name
    assert record.experts == finished.record.experts
    assert record.budget == finished.record.budget
