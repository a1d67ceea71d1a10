"""What became of the runs of a sweep: `sweep.json`, one entry a run. Figures stay in each run's own record."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from aptp.core.errors import RequestError, gist
from aptp.core.files import write_text
from aptp.core.record import Record
from aptp.kept import same_request
from aptp.sweep.grid import Cell

Status = Literal["waiting", "running", "done", "failed", "refused"]


class Entry(BaseModel):
    """One run of a sweep. `refused` means that its request was wrong."""

    model_config = ConfigDict(extra="forbid")

    name: str
    differences: dict[str, Any]
    folder: str
    status: Status = "waiting"
    error: str | None = None
    seconds: float = 0.0
    """Wall time, over all starts of the sweep."""

    def record(self) -> Record | None:
        """The run's record, where there is one that can be read."""
        try:
            return Record.load(Path(self.folder) / "record.json")
        except RequestError:
            return None

    def finished(self) -> bool:
        """Whether nothing is left to do: its record says that it is done, and its report is written."""
        record = self.record()
        return record is not None and record.status == "done" and (Path(self.folder) / "report.html").is_file()


def keep(entry: Entry, results: Path) -> None:
    """Leave a copy of a run's record, done or failed, in a folder of results, under the name of the run.

    One that was killed had no time to write that it failed.
    """
    record = Record.load(Path(entry.folder) / "record.json")
    if entry.status == "failed" and record.status == "running":
        record.status, record.error = "failed", entry.error
    record.save(results / f"{entry.name}.json")


def done_record(entry: Entry, results: Path | None) -> Record | None:
    """The record that says that a run is done: its own, else the copy of it in a folder of results."""
    if entry.finished() or results is None:
        return entry.record()
    try:
        return Record.load(results / f"{entry.name}.json")
    except RequestError:
        return None


def _kept(cell: Cell, results: Path) -> bool:
    try:
        record = Record.load(results / f"{cell.name}.json")
    except RequestError:
        return False
    return record.status == "done" and same_request(cell.config, record.config)


class Table(BaseModel):
    """All runs of a sweep."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    runs: list[Entry]

    @classmethod
    def open(cls, cells: list[Cell], folder: Path, results: Path | None = None) -> Table:
        """The cells as their folders are found, with the times that the table in `folder` knows.

        A cell is done, too, whose record `keep` left in `results`, if it is that of the same configuration.

        Raises:
            RequestError: if `sweep.json` is something else.
        """
        file = folder / "sweep.json"
        known: dict[str, float] = {}
        if file.exists():
            try:
                earlier = cls.model_validate_json(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise RequestError(f"{str(file)!r} is not the table of a sweep: {gist(error)}.") from error
            known = {entry.name: entry.seconds for entry in earlier.runs}
        entries = [
            Entry(
                name=cell.name,
                differences=cell.differences,
                folder=str(folder / cell.name),
                seconds=known.get(cell.name, 0.0),
            )
            for cell in cells
        ]
        for cell, entry in zip(cells, entries, strict=True):
            if entry.finished() or (results is not None and _kept(cell, results)):
                entry.status = "done"
        return cls(runs=entries)

    def save(self, folder: Path) -> None:
        """Write `sweep.json` atomically."""
        write_text(folder / "sweep.json", self.model_dump_json(indent=1) + "\n")

    def counts(self) -> Counter[Status]:
        """How many runs have each status."""
        return Counter(entry.status for entry in self.runs)

    def seconds_left(self, jobs: int | None) -> float | None:
        """Expected wall time, if every run takes as long as the median one that is done; `None` before one is.

        Jobs: runs at a time; without it as many as there are now.
        """
        took = [entry.seconds for entry in self.runs if entry.status == "done" and entry.seconds]
        if not took:
            return None
        usual = statistics.median(took)
        begun = [max(usual - entry.seconds, 0.0) for entry in self.runs if entry.status == "running"]
        at_once = jobs or max(len(begun), 1)
        return max([*begun, (sum(begun) + usual * self.counts()["waiting"]) / at_once])
