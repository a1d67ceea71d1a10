"""The runs of a comparison: run folders, and copies of their records from which all but the pictures can be remade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aptp.core.errors import RequestError, gist
from aptp.core.record import Record
from aptp.report.comparison.shape import check_shape


@dataclass(frozen=True)
class Source:
    """A finished run, by what it was named as; `folder` is its run directory, where there is one."""

    name: str
    record: Record
    folder: Path | None = None

    def path(self, relative: str) -> Path | None:
        """Where something lies in the run directory; `None` without one, and for what lies or leads out of it."""
        if self.folder is None:
            return None
        found = (self.folder / relative).resolve()
        return found if found.is_relative_to(self.folder.resolve()) else None


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    name: str
    error: str


def read_source(path: Path) -> Source | Failure:
    """The run in a folder, or the one whose record is in a JSON file.

    Raises:
        RequestError: if there is no record, it is of a run that is not finished, or its parts are not what they are
            called.
    """
    folder = path if path.is_dir() else None
    file = path / "record.json" if folder else path
    if not file.is_file():
        raise RequestError(f"{str(path)!r} is no run: it {'has no record.json' if folder else 'does not exist'}.")
    record = Record.load(file)
    if record.status == "failed":
        return Failure(str(path), gist(ValueError(record.error or "no reason was recorded")))
    if record.status == "running" or not record.results:
        raise RequestError(f"the run {str(path)!r} is not finished; go on with it by --resume, or leave it out.")
    check_shape(record, file)
    return Source(str(path), record, folder)


def united(sources: Sequence[Source]) -> list[Source]:
    """The runs, each once: a copy of a record that lies in a folder of the list too is that folder's run.

    Raises:
        RequestError: if a run is there twice.
    """
    found: dict[str, Source] = {}
    for source in sources:
        content = source.record.model_dump_json()
        other = found.get(content)
        if other is None:
            found[content] = source
            continue
        if (other.folder is None) == (source.folder is None):
            raise RequestError(f"{other.name!r} and {source.name!r} are the same run; name it once.")
        if source.folder:
            found[content] = source
    return list(found.values())
