"""Conceptual Captions as it is published: a TSV of captions and addresses, with a folder of its pictures."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from aptp.core.data import Sample
from aptp.core.errors import RequestError
from aptp.core.pictures import decode
from aptp.plugins.datasets._pairs import PICTURES, Found, key_of_file
from aptp.plugins.datasets._shared import inside, size_of

Naming = Literal["index", "crc32", "url"]


def read_table(root: Path, table: Path, folder: Path, naming: Naming, skipped: dict[str, str]) -> Iterator[Found]:
    """The rows of a TSV whose pictures are under `folder`, named relative to `root`.

    A third column names a row's picture, relative to `folder`; several rows may name one. Otherwise it is called, with
    any ending or none and in any folder under it, by its row's number from 0 (`12`, `000000012`, `12_CRC`), by the
    CRC-32 of its address, or as its address is. A name that fits several rows or files fits none.

    Raises:
        RequestError: for a table that is not UTF-8 or names what is outside the folder, and for one that leaves it to
            names which row is whose where the pictures have captions of their own.
    """
    found, rows = _files(folder), list(_rows(table))
    files = dict.fromkeys(file for file in found if _end(file) in ("", *PICTURES))
    if (other := _captions_beside(found, files)) and not all(name for *_, name in rows):
        raise RequestError(
            f"{str(table)!r} and {str(folder / other)!r} may caption the same pictures otherwise, as img2dataset's "
            "numbers need not be those of the rows; keep one of both, or name each row's picture in a third column."
        )
    by_key: dict[str, list[str]] = {}
    for file in files:
        by_key.setdefault(_KEY_OF_FILE[naming](PurePosixPath(file)), []).append(file)
    used = Counter(_KEY_OF_ROW[naming](number, address) for number, _, address, name in rows if not name)
    above, told = folder.relative_to(root), Counter[str]()
    for number, caption, address, name in rows:
        who = f"{table.name}, row {number}"
        if not caption:
            skipped[who] = "its caption is empty"
            continue
        if name:
            fitting = [file for file in [inside(name, f"row {number} of {str(table)!r}")] if file in files]
        else:
            key = _KEY_OF_ROW[naming](number, address)
            fitting = by_key.get(key, [])
            if len(fitting) > 1 or (fitting and used[key] > 1):
                skipped[who] = f"the name of its picture, {key!r}, fits several rows or files"
                continue
        size = size_of(folder / fitting[0]) if fitting else None
        if size is None:
            skipped[who] = "its picture is missing"
        elif naming == "index" and not name and _other_address(PurePosixPath(fitting[0]), address):
            skipped[who] = f"{fitting[0]!r} is the picture of another address"
        else:
            picture = (above / fitting[0]).as_posix()
            told[picture] += 1
            id_ = picture if told[picture] == 1 else f"{picture}#{told[picture]}"
            opened = partial(decode, str(folder / fitting[0]))
            yield Found(Sample(id_, caption, opened, picture=picture), size)


def _number_of(path: PurePosixPath) -> str:
    found = re.fullmatch(r"0*(\d+)(_\d+)?", path.stem)
    return found.group(1) if found else ""


def _other_address(path: PurePosixPath, address: str) -> bool:
    """Whether the CRC-32 in a file's name is not that of the address."""
    _, sign, crc = path.stem.partition("_")
    return bool(sign) and crc != _crc(address)


def _crc(address: str) -> str:
    return str(zlib.crc32(address.encode()))


def _last_part(address: str) -> str:
    """Nothing of what is no address."""
    try:
        return unquote(urlsplit(address).path).rpartition("/")[2]
    except ValueError:
        return ""


_KEY_OF_FILE: dict[Naming, Callable[[PurePosixPath], str]] = {
    "index": _number_of,
    "crc32": lambda path: path.stem,
    "url": lambda path: path.name,
}
_KEY_OF_ROW: dict[Naming, Callable[[int, str], str]] = {
    "index": lambda number, address: str(number),
    "crc32": lambda number, address: _crc(address),
    "url": lambda number, address: _last_part(address),
}


def _files(folder: Path) -> list[str]:
    """Everything under a folder, relative to it, in order."""
    found = []
    for place, _, names in os.walk(folder):
        above = PurePosixPath(Path(place).relative_to(folder).as_posix())
        found += [str(above / name) for name in names if not name.startswith(".")]
    return sorted(found)


def _end(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _captions_beside(found: Iterable[str], pictures: Iterable[str]) -> str | None:
    """What looks like img2dataset's: a picture's caption, or an archive where no picture lies unpacked."""
    keys = {key_of_file(picture)[0] for picture in pictures}
    captions = (file for file in found if _end(file) in ("txt", "json") and key_of_file(file)[0] in keys)
    archives = (file for file in found if not keys and _end(file) == "tar")
    return next(captions, next(archives, None))


def _rows(table: Path) -> Iterator[tuple[int, str, str, str]]:
    """Number, caption, address and the picture's name of each row; a head (`caption`, `url`) is none."""
    number = 0
    try:
        with table.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                caption, address, name, *_ = [*(part.strip() for part in line.split("\t")), "", ""]
                if number == 0 and address.lower() in ("url", "image_url"):
                    continue
                yield number, " ".join(caption.split()), address, name
                number += 1
    except UnicodeDecodeError as error:
        raise RequestError(f"{str(table)!r} is not UTF-8 text; save it as UTF-8.") from error
