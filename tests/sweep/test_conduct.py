"""Runs of a sweep as processes; most are stand-ins for `aptp run` that take no time and do what their seed says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from aptp.cluster import _Task
from aptp.core.child import Child
from aptp.core.errors import RequestError
from aptp.core.record import Record
from aptp.host import default_host
from aptp.sweep import conduct as module
from aptp.sweep.conduct import Command, conduct
from aptp.sweep.grid import Cell, Sweep, cells
from aptp.sweep.table import Entry, Table

FAILS, REFUSED, KILLED, HANGS = 107, 108, 109, 110
"""Seeds whose run raises, is a wrong request, is killed, and does not end until there is a file `go` in the folder."""

CHILD = f"""
import json, os, re, signal, sys, time, yaml
from pathlib import Path
from types import SimpleNamespace

config, out = map(Path, sys.argv[1:])
seed = int(re.search(r"^seed: (\\d+)", config.read_text(), re.MULTILINE).group(1))
out.mkdir(parents=True, exist_ok=True)
record = dict(started="now", config=yaml.safe_load(config.read_text()), versions={{}}, hardware={{}})

def leave(status, error=None):
    (out / "record.json").write_text(json.dumps(record | dict(status=status, error=error)))

(out / "config.yaml").write_text(config.read_text())
leave("running")
with (out.parent / "starts").open("a") as starts:
    starts.write(f"{{out.name}} {{os.environ['OMP_NUM_THREADS']}} {{os.getpid()}}\\n")
if seed == {FAILS}:
    leave("failed", "RuntimeError: boom.\\nsecond line")
    print("a library's chatter")
    print("aptp: the run failed: RuntimeError: boom; what was computed is kept", file=sys.stderr)
    sys.exit(1)
if seed == {REFUSED}:
    print("aptp: budget 0.1 is under the floor of 0.3.", file=sys.stderr)
    sys.exit(2)
if seed == {KILLED}:
    os.kill(os.getpid(), signal.SIGKILL)
while seed == {HANGS} and not (out.parent / "go").exists():
    time.sleep(0.02)
leave("done")
(out / "report.html").touch()
"""


@pytest.fixture
def child(tmp_path: Path) -> Command:
    """The stand-in."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return lambda config, out: [str(script), str(config), str(out)]


def of_seeds(seeds: Sequence[int]) -> list[Cell]:
    """A sweep over seeds."""
    return cells(Sweep(grid={"seed": list(seeds)}), default_host())


def starts(folder: Path) -> list[tuple[str, int, int]]:
    """Each start of a child: its run, threads and process."""
    if not (folder / "starts").exists():
        return []
    rows = [line.split() for line in (folder / "starts").read_text().splitlines()]
    return [(name, int(threads), int(process)) for name, threads, process in rows]


def unwatched(table: Table) -> None:
    """Watch nothing."""


def until(condition: Callable[[], bool], patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


def test_every_run_comes_to_an_end_of_its_own(folder: Path, child: Command) -> None:
    table = conduct(of_seeds([0, FAILS, REFUSED, KILLED, 1]), folder, 2, unwatched, child)
    assert [entry.status for entry in table.runs] == ["done", "failed", "refused", "failed", "done"]
    assert [entry.error for entry in table.runs] == [
        None,
        "RuntimeError: boom",
        "budget 0.1 is under the floor of 0.3.",
        "the run was killed by SIGKILL",
        None,
    ]
    assert len(starts(folder)) == 5
    written = json.loads((folder / "sweep.json").read_text())
    assert written == table.model_dump(mode="json")
    assert set(written["runs"][0]) == {"name", "differences", "folder", "status", "error", "seconds"}
    assert written["runs"][0]["differences"] == {"seed": 0}
    assert Path(written["runs"][0]["folder"]) == folder / "seed=0"
    assert all(entry.seconds > 0 for entry in table.runs)


def test_a_run_that_says_nothing_is_a_failure_with_a_place_to_look(folder: Path) -> None:
    (entry,) = conduct(of_seeds([0]), folder, 1, unwatched, lambda config, out: ["-c", ""]).runs
    assert entry.status == "failed"
    assert entry.error == f"the run ended with exit status 0; see {folder / '.cells' / 'seed=0.log'}"


def test_finished_runs_are_left_alone_and_the_others_tried_again(folder: Path, child: Command) -> None:
    found = of_seeds([0, FAILS, 1])
    first = conduct(found, folder, 1, unwatched, child)
    again = conduct([*found, *of_seeds([2])], folder, 1, unwatched, child)
    assert [name for name, *_ in starts(folder)] == [
        *("seed=0", f"seed={FAILS}", "seed=1"),
        *(f"seed={FAILS}", "seed=2"),
    ]
    assert [entry.status for entry in again.runs] == ["done", "failed", "done", "done"]
    assert again.runs[0].seconds == first.runs[0].seconds
    assert again.runs[1].seconds > first.runs[1].seconds


def test_a_run_whose_result_is_kept_is_not_run_again(folder: Path, child: Command, tmp_path: Path) -> None:
    results, found = tmp_path / "results", of_seeds([0, FAILS])
    conduct(found, folder, 1, unwatched, child, results)
    assert {path.name for path in results.iterdir()} == {"seed=0.json", f"seed={FAILS}.json"}
    shutil.rmtree(folder)
    table = conduct(of_seeds([0]), folder, 1, unwatched, child, results)
    assert [entry.status for entry in table.runs] == ["done"]
    assert starts(folder) == []


def test_what_was_killed_is_kept_as_failed(folder: Path, child: Command, tmp_path: Path) -> None:
    results = tmp_path / "results"
    (folder / f"seed={KILLED}").mkdir(parents=True)
    (cell,) = of_seeds([KILLED])
    (folder / cell.name / "config.yaml").write_text(cell.config.to_yaml())
    Record(started="", config={}, versions={}, hardware={}).save(folder / cell.name / "record.json")
    conduct([cell], folder, 1, unwatched, child, results)
    kept = Record.load(results / f"{cell.name}.json")
    assert (kept.status, kept.error) == ("failed", "the run was killed by SIGKILL")


def test_a_result_kept_before_an_option_was_known_counts(folder: Path, child: Command, tmp_path: Path) -> None:
    kept = tmp_path / "results/seed=0.json"
    conduct(of_seeds([0]), folder, 1, unwatched, child, kept.parent)
    data = json.loads(kept.read_text())
    del data["config"]["precision"], data["config"]["balancer"]["epsilon"]
    kept.write_text(json.dumps(data))
    shutil.rmtree(folder)
    assert conduct(of_seeds([0]), folder, 1, unwatched, child, kept.parent).runs[0].status == "done"
    assert starts(folder) == []


def test_a_result_of_another_configuration_is_replaced(folder: Path, child: Command, tmp_path: Path) -> None:
    kept = tmp_path / "results/seed=0.json"
    conduct(of_seeds([0]), folder, 1, unwatched, child, kept.parent)
    right = kept.read_text()
    kept.write_text(right.replace('"experts": 4', '"experts": 5'))
    shutil.rmtree(folder)
    conduct(of_seeds([0]), folder, 1, unwatched, child, kept.parent)
    assert len(starts(folder)) == 1
    assert kept.read_text() == right


def test_a_run_killed_before_its_report_was_written_goes_on(folder: Path, child: Command) -> None:
    conduct(of_seeds([0]), folder, 1, unwatched, child)
    (folder / "seed=0/report.html").unlink()
    assert conduct(of_seeds([0]), folder, 1, unwatched, child).runs[0].status == "done"
    assert len(starts(folder)) == 2


def test_so_many_run_at_a_time_and_share_the_cores(
    folder: Path, child: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_cores", lambda: 9)
    seen = []
    conduct(of_seeds(range(5)), folder, 2, lambda table: seen.append(table.counts()["running"]), child)
    assert max(seen) == 2
    assert {threads for _, threads, _ in starts(folder)} == {4}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    conduct(of_seeds([5]), folder, 20, unwatched, child)
    assert starts(folder)[-1][1] == 3


class Queued:
    """A run that a busy cluster lets wait until it was asked for three times."""

    def __init__(self, start: Callable[[], Child]) -> None:
        self.start, self.child, self.asked = start, None, 0

    def began(self) -> bool:
        return self.child is not None

    def poll(self) -> int | None:
        self.asked += 1
        if self.asked == 3:
            self.child = self.start()
        return self.child.poll() if self.child else None

    def kill(self) -> None:
        if self.child:
            self.child.kill()


def test_runs_that_wait_for_a_place_elsewhere_are_waiting(folder: Path, child: Command) -> None:
    tasks: list[Queued] = []

    def start(arguments: Sequence[str], log: Path) -> Queued:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        tasks.append(Queued(lambda: Child(arguments, log.open("wb"), environment)))
        return tasks[-1]

    seen = []
    table = conduct(
        of_seeds([0, REFUSED, 1]),
        folder,
        None,
        lambda table: seen.append((len(tasks), table.counts()["waiting"])),
        child,
        start=start,
    )
    assert seen[0] == (3, 3), "all are asked for at once"
    assert [entry.status for entry in table.runs] == ["done", "refused", "done"]
    assert table.runs[1].error == "budget 0.1 is under the floor of 0.3."


def test_an_interrupted_sweep_leaves_no_run_behind(folder: Path, child: Command) -> None:
    def interrupt(table: Table) -> None:
        if starts(folder):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conduct(of_seeds([HANGS]), folder, 1, interrupt, child)
    ((_, _, process),) = starts(folder)
    assert gone(process)
    (entry,) = Table.model_validate_json((folder / "sweep.json").read_text()).runs
    assert entry.status == "waiting"


DRIVER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from aptp.host import default_host
from aptp.sweep.conduct import conduct
from aptp.sweep.grid import Sweep, cells

script, folder, *seeds = sys.argv[1:]
found = cells(Sweep(grid={"seed": list(map(int, seeds))}), default_host())
conduct(found, Path(folder), 2, lambda table: None, lambda config, out: [script, config, out])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with their parent")
def test_a_killed_sweep_takes_its_runs_along_and_goes_on(
    folder: Path, child: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [0, HANGS, 1, KILLED]
    sweep = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder.parent / "child.py"), str(folder), *map(str, seeds)]
    )
    try:
        until(lambda: (folder / "seed=1/report.html").exists() and len(starts(folder)) == 4)
    finally:
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait()
    (hanging,) = (process for name, _, process in starts(folder) if name == f"seed={HANGS}")
    until(lambda: gone(hanging))
    (folder / "go").touch()
    monkeypatch.setattr(module, "LOCK_SECONDS", 5.0)
    table = conduct(of_seeds(seeds), folder, 2, unwatched, child)
    assert [entry.status for entry in table.runs] == ["done", "done", "done", "failed"]
    begun = [name for name, *_ in starts(folder)]
    assert {name: begun.count(name) for name in begun} == {
        "seed=0": 1,
        "seed=1": 1,
        f"seed={HANGS}": 2,
        f"seed={KILLED}": 2,
    }


def test_a_sweep_is_refused_while_it_or_one_of_its_runs_goes_on(folder: Path, child: Command) -> None:
    with module._alone(folder) as lock:
        with pytest.raises(RequestError, match="is going on"):
            conduct(of_seeds([0]), folder, 1, unwatched, child)
        left = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    try:
        with pytest.raises(RequestError, match="or a run of it still is"):
            conduct(of_seeds([0]), folder, 1, unwatched, child)
    finally:
        left.communicate(b"\n")
    assert conduct(of_seeds([0]), folder, 1, unwatched, child).runs[0].status == "done"


def test_another_table_is_refused(folder: Path, child: Command) -> None:
    folder.mkdir()
    (folder / "sweep.json").write_text("[]")
    with pytest.raises(RequestError, match=r"sweep\.json' is not the table of a sweep"):
        conduct(of_seeds([0]), folder, 1, unwatched, child)
    assert starts(folder) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, child: Command) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"):
        conduct(of_seeds([0]), tmp_path / "file" / "sweep", 1, unwatched, child)


@pytest.mark.parametrize(
    ("entries", "jobs", "expected"),
    [
        ([("waiting", 0)], 1, None),
        ([("done", 0)], 1, None),  # by a table that is lost
        ([("done", 10), ("done", 30), ("done", 20), ("waiting", 0), ("waiting", 0)], 1, 40),
        ([("done", 20), ("running", 5), ("waiting", 0)], 1, 35),
        ([("done", 20), ("running", 5), ("running", 15), ("waiting", 0)], 2, 20),
        ([("done", 20), ("running", 5), ("running", 15), ("waiting", 0)], None, 20),
        ([("done", 20), ("waiting", 0), ("waiting", 0)], None, 40),
        ([("done", 20), ("running", 5), ("running", 19)], 2, 15),
        ([("done", 20), ("running", 50)], 1, 0),
        ([("done", 20), ("failed", 1), ("refused", 1)], 1, 0),
    ],
)
def test_the_time_left_is_that_of_the_median_run(
    entries: Sequence[tuple[str, float]], jobs: int | None, expected: float | None
) -> None:
    runs = [Entry(name="", differences={}, folder="", status=status, seconds=took) for status, took in entries]
    assert Table(runs=runs).seconds_left(jobs) == expected


def no_room(*_: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_no_run_that_goes_on(folder: Path, child: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table, and the request of the second run, find no room while the first one computes."""

    def write(path: Path, text: str) -> None:
        if path.name == "seed=1.yaml":
            monkeypatch.setattr(Table, "save", no_room)
            no_room()
        path.write_text(text)

    def watch(table: Table) -> None:
        if table.runs[1].status == "failed":
            (folder / "go").touch()

    monkeypatch.setattr(module, "write_text", write)
    table = conduct(of_seeds([HANGS, 1]), folder, 2, watch, child)
    assert [entry.status for entry in table.runs] == ["done", "failed"]
    assert table.runs[1].error == "the run cannot be started: [Errno 28] No space left on device"
    monkeypatch.undo()
    assert [entry.status for entry in conduct(of_seeds([HANGS, 1]), folder, 2, unwatched, child).runs] == ["done"] * 2
    assert json.loads((folder / "sweep.json").read_text())["runs"][0]["status"] == "done"


def test_a_copy_that_finds_no_room_is_told_and_made_later(
    folder: Path, child: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(module, "keep", no_room)
        (entry,) = conduct(of_seeds([0]), folder, 1, unwatched, child, results).runs
    assert entry.status == "done"
    assert entry.error == f"its record is not copied to {str(results)!r}: [Errno 28] No space left on device"
    (entry,) = conduct(of_seeds([0]), folder, 1, unwatched, child, results).runs
    assert entry.error is None
    assert [file.name for file in results.iterdir()] == ["seed=0.json"]


def test_a_task_that_ray_gives_up_on_a_full_disk_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log has no room for why; other tasks go on."""

    class RayError(Exception):
        pass

    def get(reference: str) -> None:
        raise RayError(reference)

    ray = SimpleNamespace(
        wait=lambda references, timeout: (references, []), get=get, exceptions=SimpleNamespace(RayError=RayError)
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    (tmp_path / "log").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", no_room)
        assert _Task("lost", tmp_path / "log").poll() == 1
    assert _Task("lost", tmp_path / "log").poll() == 1
    assert (tmp_path / "log").read_text() == "aptp: Ray gave the task up: RayError: lost\n"
