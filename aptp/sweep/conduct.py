"""Carries out the runs of a sweep, so many at a time, each as `aptp run` in a process of its own.

A run that crashes or is killed takes nobody with it. Children do not outlive the sweep on Linux, however it ends; where
the system cannot promise that, they hold the sweep's lock, and the sweep is refused until they are done. Runs may also
be started elsewhere, by whatever `start` is given.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aptp.core.child import REFUSED, Child, Start, Task, reason
from aptp.core.errors import RequestError, gist
from aptp.core.files import write_text
from aptp.sweep.grid import Cell
from aptp.sweep.table import Entry, Table, keep

ASIDE = ".cells"
"""Folder, in the sweep's, of what belongs to no run's own folder: requests, output, the lock."""
POLL_SECONDS = 0.2
SAVE_SECONDS = 15.0
"""Times of unfinished runs are saved this often; a kill loses no more."""
LOCK_SECONDS = 5.0
"""How long the children of a killed sweep may take to go."""

Command = Callable[[Path, Path], list[str]]
"""Python's arguments to carry out the configuration in a file in a folder."""


def aptp_run(config: Path, out: Path) -> list[str]:
    """`aptp run`, which goes on with what it finds."""
    return ["-m", "aptp", "run", "--config", str(config), "--out", str(out), "--resume"]


def conduct(
    cells: list[Cell],
    folder: Path,
    jobs: int | None,
    watch: Callable[[Table], None],
    command: Command = aptp_run,
    results: Path | None = None,
    start: Start | None = None,
) -> Table:
    """Bring every cell to an end in its folder under `folder`; `watch` is shown the table as it goes.

    Runs that are finished are left alone; interrupted, failed and refused ones are tried again, and go on where they
    stopped. In `results`, if given, runs leave copies of their records, and what lies there as done is not run again.
    `jobs` are started at a time (without it, all): on this machine, where `OMP_NUM_THREADS` shares the cores among
    them, unless the environment has it; or by `start`, wherever that may be.

    Raises:
        RequestError: if the sweep is going on elsewhere, or `folder` holds something else.
    """
    with _alone(folder) as lock:
        table = Table.open(cells, folder, results)
        _keep(table.runs, results)
        waiting = [(cell, entry) for cell, entry in zip(cells, table.runs, strict=True) if entry.status == "waiting"]
        at_once = jobs or len(cells)
        begin = start or _here(at_once, lock)
        children: list[_Run] = []
        saved = -SAVE_SECONDS
        try:
            while waiting or children:
                ended = [child for child in children if child.ended()]
                children = [child for child in children if child not in ended]
                _keep([child.entry for child in ended], results)
                started = waiting[: at_once - len(children)]
                del waiting[: len(started)]
                children += filter(None, [_Run.start(*each, folder / ASIDE, command, begin) for each in started])
                if started or ended or time.monotonic() - saved >= SAVE_SECONDS:
                    _save(table, folder)
                    saved = time.monotonic()
                watch(table)
                time.sleep(POLL_SECONDS)
        finally:
            for child in children:
                child.kill()
            _save(table, folder)
    return table


def _here(jobs: int, lock: int) -> Start:
    """Starts runs on this machine, which hold the sweep's lock."""
    environment = {"OMP_NUM_THREADS": str(max(1, _cores() // jobs)), **os.environ}

    def start(arguments: Sequence[str], log: Path) -> Child:
        with log.open("wb") as output:
            return Child(arguments, output, environment, held=[lock])

    return start


@dataclass(eq=False)
class _Run:
    """A run that is going on, or waits for a place."""

    entry: Entry
    task: Task
    log: Path
    began: float = 0.0
    """On the monotonic clock, earlier by what the run took before."""

    @classmethod
    def start(cls, cell: Cell, entry: Entry, aside: Path, command: Command, start: Start) -> _Run | None:
        """Have the run begin; where its request cannot be written down, it has failed."""
        config, log = aside / f"{cell.name}.yaml", aside / f"{cell.name}.log"
        try:
            write_text(config, cell.config.to_yaml())
            run = cls(entry, start(command(config, Path(entry.folder)), log), log)
        except OSError as error:
            entry.status, entry.error = "failed", f"the run cannot be started: {gist(error)}"
            return None
        run.look()
        return run

    def look(self) -> None:
        """Keep in the entry whether the run has begun, and how long it has taken."""
        if self.entry.status == "waiting" and self.task.began():
            self.entry.status, self.began = "running", time.monotonic() - self.entry.seconds
        if self.entry.status == "running":
            self.entry.seconds = round(time.monotonic() - self.began, 3)

    def ended(self) -> bool:
        """Whether the run is over; keeps what `look` sees, and in the end its status and error."""
        status = self.task.poll()
        self.look()
        if status is None:
            return False
        if status == 0 and self.entry.finished():
            self.entry.status = "done"
        else:
            self.entry.status = "refused" if status == REFUSED else "failed"
            self.entry.error = self._error(status)
        return True

    def kill(self) -> None:
        """End the run and all that it started; it can go on from its last checkpoint."""
        self.task.kill()
        self.entry.status = "waiting"

    def _error(self, status: int) -> str:
        said = reason("the run", status, self.log)
        record = self.entry.record()
        recorded = record.error.partition("\n")[0].rstrip(".") if record and record.error else said
        return recorded if recorded in said else said


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Holds the lock of the sweep in `folder`, whose descriptor the children inherit: it is free when all are gone."""
    try:
        (folder / ASIDE).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ASIDE / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RequestError(f"the sweep's folder {str(folder)!r} cannot be written: {error.strerror}.") from error
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise RequestError(
                        f"the sweep in {str(folder)!r} is going on, or a run of it still is; wait for it or stop it."
                    ) from error
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _save(table: Table, folder: Path) -> None:
    """Where the disk is full this is left for the next time: `sweep.json` alone has nothing but the times of runs."""
    with suppress(OSError):
        table.save(folder)


def _keep(entries: list[Entry], results: Path | None) -> None:
    if results is None:
        return
    for entry in entries:
        if entry.finished() or (entry.status == "failed" and entry.record()):
            try:
                keep(entry, results)
            except OSError as error:
                lost = f"its record is not copied to {str(results)!r}: {gist(error)}"
                entry.error = f"{entry.error}; {lost}" if entry.error else lost


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
