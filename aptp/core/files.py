"""Where the cache lies, and atomic writes: a reader sees the old file or the new one, never half of one.

That holds when the machine goes down, too: what is renamed onto its place is on the disk before.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aptp.core.errors import RequestError

UNABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""What systems say that cannot sync a folder, or open one to do so: the files in it are whole all the same."""


def default_cache() -> Path:
    """`$APTP_CACHE`, or `aptp` in the user's cache folder. Raises `RequestError` where there is no home for that."""
    if named := os.environ.get("APTP_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aptp"
    except RuntimeError as error:
        raise RequestError("there is no home folder to keep the cache in; name a folder with APTP_CACHE.") from error


def check_new(folder: Path) -> None:
    """Raise `RequestError` for a folder to be written that has something in it, or cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{str(folder)!r} is there already and not an empty folder; name a new one.")
    home = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise RequestError(f"{str(folder)!r} cannot be made: {str(home)!r} is no folder to write into; name another.")


@contextmanager
def replacing(path: str | Path, *, lasting: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it if the body succeeds and removed if it does not.

    Args:
        lasting: wait for the disk. Without it the file may be empty after a machine went down: for many small ones of
            which a reader sees whether they are whole, and which can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        if lasting:
            _sync(temporary)
        os.replace(temporary, path)
        if lasting:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Wait until all that a folder holds is on the disk, before it is renamed to its place."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")
