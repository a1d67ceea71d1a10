"""A sweep of real runs that was killed and started again is the sweep that was never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from aptp.config import RunConfig
from aptp.core.record import Record
from aptp.sweep.table import Table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with their parent"),
]

PATIENCE = 300
CELLS = ("seed=0", "seed=1")
STOPPED = "seed=1"
FILES = ("router/router.safetensors", "router/space.json", "experts/*/*", "samples/contrastive+sinkhorn/*.png")
"""What a run makes itself: the dense model's pictures may come from the cache."""


@pytest.fixture(scope="module")
def files(small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sweeps over two seeds of the small run, with less to draw, and over the second alone."""
    base = small_config.model_dump(mode="json") | {"compare": []}
    base["evaluate"] |= {"prompts": 6, "gallery": 0}
    home = tmp_path_factory.mktemp("sweep")
    two, one = home / "two.yaml", home / "one.yaml"
    two.write_text(yaml.safe_dump({"base": base, "grid": {"seed": [0, 1]}}))
    one.write_text(yaml.safe_dump({"base": base, "grid": {"seed": [1]}}))
    return two, one


def sweep(file: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "aptp", "sweep", str(file), "--out", str(out)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_sweep_goes_on_to_the_same_results(files: tuple[Path, Path]) -> None:
    file, one = files
    whole, killed = file.parent / "whole", file.parent / "killed"
    assert sweep(one, whole).wait(PATIENCE) == 0

    first = sweep(file, killed)
    deadline = time.monotonic() + PATIENCE
    try:
        while not (killed / STOPPED / "logs/search.jsonl").exists():
            assert first.poll() is None, "the sweep ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (child,) = psutil.Process(first.pid).children()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    deadline = time.monotonic() + 10
    while not gone(child):
        assert time.monotonic() < deadline, "a run outlived its sweep"
        time.sleep(0.01)
    assert [Record.load(killed / name / "record.json").status for name in CELLS] == ["done", "running"]
    finished = {path: path.stat().st_mtime_ns for path in (killed / "seed=0").rglob("*")}

    assert sweep(file, killed).wait(PATIENCE) == 0
    assert {path: path.stat().st_mtime_ns for path in (killed / "seed=0").rglob("*")} == finished
    table = Table.model_validate_json((killed / "sweep.json").read_text())
    assert [entry.status for entry in table.runs] == ["done", "done"]
    ours, theirs = (out / STOPPED for out in (killed, whole))
    record, other = (Record.load(out / "record.json") for out in (ours, theirs))
    assert (record.status, record.experts, record.budget) == ("done", other.experts, other.budget)
    assert [result.metrics for result in record.results] == [result.metrics for result in other.results]
    paths = [path.relative_to(theirs) for glob in FILES for path in theirs.glob(glob)]
    assert len(paths) > 10
    for path in paths:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
