"""A Ray cluster of two nodes on this machine: one is lost, and what ran there goes on elsewhere."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from aptp.cluster import Resources, on_cluster
from aptp.config import RunConfig
from aptp.core.child import Task
from aptp.core.errors import RequestError
from aptp.core.record import Record

pytestmark = pytest.mark.slow
PATIENCE = 900


@pytest.fixture(autouse=True)
def _nodes(ray_cluster) -> None:
    """Of every test here."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(task: Task) -> int:
    """Its exit status."""
    until(lambda: task.poll() is not None)
    return task.poll()


def nodes_of(log: Path) -> list[str]:
    """Where a task was started, one after the other."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.removeprefix("on node ") for line in lines if line.startswith("on node ")]


def test_a_program_ends_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APTP_CACHE", "ours")
    monkeypatch.setenv("OTHER", "not the node's")
    program = "import os; print(os.getcwd(), *map(os.environ.get, ['OMP_NUM_THREADS', 'APTP_CACHE', 'OTHER']))"
    with on_cluster(tmp_path, Resources()) as start:
        good = start(["-c", program], Path("good.log"))
        bad = start(["-c", "import sys; print('aptp: no.'); sys.exit(2)"], Path("bad.log"))
        killed = start(["-c", "import os; os.kill(os.getpid(), 9)"], Path("killed.log"))
        assert [ended(good), ended(bad), ended(killed)] == [0, 2, -signal.SIGKILL]
    assert Path("good.log").read_text().splitlines()[1:] == [f"{tmp_path} 1 ours None"]
    assert Path("bad.log").read_text().endswith("aptp: no.\n")


def test_a_task_that_is_lost_too_often_is_a_failure_with_a_reason(ray_cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with on_cluster(tmp_path, Resources(retries=0)) as start:
        task = start(["-c", "import time; time.sleep(600)"], log)
        until(task.began)
        ray_cluster.kill(*nodes_of(log))
        assert ended(task) == 1
    assert "aptp: Ray gave the task up: " in log.read_text()


def test_tasks_end_with_their_context_and_wait_for_those_that_have_not(tmp_path: Path) -> None:
    """A program that was started again writes nothing while the one before it is there."""
    log = tmp_path / "log"
    with on_cluster(tmp_path, Resources()) as start:
        task = start(["-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"], log)
        until(lambda: log.read_text().count("\n") == 2)
        process = psutil.Process(int(log.read_text().split()[-1]))
    until(lambda: not process.is_running())
    with on_cluster(tmp_path, Resources()) as start, log.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        task = start(["-c", "print('next')"], log)
        time.sleep(3)
        assert not task.began()
        held.close()
        assert ended(task) == 0


def test_what_a_cluster_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"no node of the Ray cluster has the 9 cores and 0\.5 GPUs"):  # noqa: SIM117
        with on_cluster(tmp_path, Resources(9, 0.5)):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"), on_cluster(tmp_path / "file/x", Resources()):
        pass
    elsewhere = SimpleNamespace(NamedTemporaryFile=lambda **_: nullcontext(SimpleNamespace(name="/no/such/file")))
    monkeypatch.setattr("aptp.cluster.tempfile", elsewhere)
    with pytest.raises(RequestError, match="does not see --out"), on_cluster(tmp_path, Resources()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cluster_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("127.0.0.1:1", "127.0.0.1:x"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RequestError, match=f"at RAY_ADDRESS '{address}'"), on_cluster(tmp_path, Resources()):
            pass


def test_a_sweep_survives_a_node(ray_cluster, finished, small_config: RunConfig, tmp_path: Path) -> None:
    """And its run is the run that was never stopped, bit for bit."""
    base = small_config.model_dump(mode="json") | {"compare": []}
    base["evaluate"] |= {"prompts": 6, "gallery": 0}
    file, out = tmp_path / "two.yaml", tmp_path / "sweep"
    file.write_text(yaml.safe_dump({"base": base, "grid": {"seed": [0, 1]}}))
    command = [sys.executable, "-m", "aptp", "sweep", str(file), "--out", str(out), "--executor", "ray"]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: (out / "seed=0/logs/search.jsonl").exists() or sweep.poll() is not None)
        (lost,) = nodes_of(out / ".cells/seed=0.log")
        ray_cluster.kill(lost)
        _, said = sweep.communicate(timeout=PATIENCE)
    finally:
        sweep.kill()
        sweep.wait()
    assert sweep.returncode == 0, said
    assert len(said.splitlines()) == 2, "a line for each run that ended"
    first, second = nodes_of(out / ".cells/seed=0.log")
    assert first == lost != second
    assert [Record.load(out / name / "record.json").status for name in ("seed=0", "seed=1")] == ["done", "done"]
    for name in ("router/router.safetensors", "logs/search.jsonl", "experts/01/expert.safetensors"):
        assert (out / "seed=0" / name).read_bytes() == (finished.out / name).read_bytes(), name
