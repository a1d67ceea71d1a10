"""Programs in processes of their own: what they get, how they end, and what is said of that."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from aptp.core.child import Child, reason


def test_a_program_has_its_folder_environment_and_output(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as output:
        child = Child(["-c", "import os; print(os.getcwd(), os.environ['A'])"], output, {"A": "1"}, str(tmp_path))
    assert child.began()
    assert child.wait() == child.poll() == 0
    assert (tmp_path / "log").read_text() == f"{tmp_path} 1\n"
    child.kill()


def test_a_program_is_killed_with_what_it_started(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)\n"
        "time.sleep(600)"
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = Child(["-c", program], output)
    while not log.read_text().endswith("\n"):
        assert child.poll() is None
    started = psutil.Process(int(log.read_text()))
    child.kill()
    assert child.poll() == -signal.SIGKILL
    psutil.wait_procs([started], timeout=30)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (1, "chatter\naptp: first.\naptp: last.\nchatter\n", "last."),
        (1, "chatter\n", "it ended with exit status 1; see "),
        (-signal.SIGTERM, "aptp: first.\n", "it was killed by SIGTERM"),
    ],
)
def test_the_reason_of_a_failure_is_one_sentence(status: int, log: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert reason("it", status, tmp_path / "log").startswith(said)


def test_a_program_that_a_full_disk_struck_dumb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    assert reason("it", 1, log) == f"it ended with exit status 1; no space is left on the disk of {log}"
