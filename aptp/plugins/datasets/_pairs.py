"""Pictures with captions beside them, as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json` in folders or tars.

A key is a file's name up to its first dot. Tar archives are never unpacked: each is read through once, what lies where
in it is kept in the cache, and a picture is read from its place when it is asked for.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from aptp.core.data import Sample
from aptp.core.files import default_cache, write_text
from aptp.core.pictures import decode
from aptp.plugins.datasets._shared import size_of

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
LONGEST = 2**20
"""Bytes of a caption's file; a longer one is no caption."""
BLOCK = 512
"""Bytes of a block of a tar archive, which ends with blocks of zeros."""
VERSION = 1
"""Of the indices in the cache."""


class Found(NamedTuple):
    """A captioned picture and the bytes of its file."""

    sample: Sample
    size: int


class Entry(NamedTuple):
    """What is known of a key: its caption, if any, and the bytes of its picture (`offset` −1: there is none)."""

    caption: str = ""
    offset: int = -1
    size: int = 0
    written: bool = False
    """Whether there is a text file, so that a picture is to be expected."""


def read_files(root: Path, folder: Path, skipped: dict[str, str]) -> Iterator[Found]:
    """The pairs in the files under `folder`, named relative to `root`."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        above = Path(place).relative_to(root)
        entries: dict[str, Entry] = {}
        pictures: dict[str, str] = {}
        for name in sorted(names):
            key, end = key_of_file(name)
            path = Path(place, name)
            if key and (size := size_of(path)) is not None:
                if end in PICTURES and key not in pictures:
                    pictures[key] = str(path)
                    entries[key] = entries.get(key, Entry())._replace(offset=0, size=size)
                elif end in ("txt", "json") and size <= LONGEST:
                    entries[key] = _told(entries.get(key, Entry()), end, _content(path))
        for key, entry in entries.items():
            id_ = (above / key).as_posix()
            if _usable(id_, entry, skipped):
                yield Found(Sample(id_, entry.caption, partial(decode, pictures[key])), entry.size)


def read_shards(root: Path, folder: Path, skipped: dict[str, str]) -> Iterator[Found]:
    """The pairs in the tar archives under `folder`, named relative to `root` as if they were unpacked there.

    An archive that is cut short or damaged is listed, and what lies before the damage is used. One that may not
    be read is listed, too.
    """
    for path in sorted(folder.rglob("*.tar")):
        name = path.relative_to(root).as_posix()
        try:
            damage, entries = _kept_index(path)
        except (PermissionError, FileNotFoundError) as error:
            damage, entries = f"it cannot be read: {error.strerror}", {}
        for key, entry in entries.items():
            id_ = f"{name.removesuffix('.tar')}/{key}"
            if _usable(id_, entry, skipped):
                opened = partial(decode_member, str(path), entry.offset, entry.size)
                yield Found(Sample(id_, entry.caption, opened), entry.size)
        if damage:
            skipped[name] = damage


def decode_member(path: str, offset: int, size: int) -> Image.Image:
    """The picture in so many bytes of an archive."""
    with open(path, "rb") as file:
        return decode(io.BytesIO(_bytes(file, offset, size)))


def _content(path: Path) -> bytes:
    """Of a caption's file; nothing of one that may not be read."""
    try:
        return path.read_bytes()
    except PermissionError:
        return b""


def _kept_index(path: Path) -> tuple[str | None, dict[str, Entry]]:
    """The index of an archive as it is now, from the cache if it is there; kept there if that can be written."""
    state = path.stat()
    key = json.dumps([VERSION, str(path.resolve()), state.st_size, state.st_mtime_ns])
    file = default_cache() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    try:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept["damage"], {key: Entry(*entry) for key, entry in kept["entries"].items()}
    except (OSError, ValueError, TypeError, KeyError):
        damage, entries = _index(path, state.st_size)
        with suppress(OSError):
            write_text(file, json.dumps({"damage": damage, "entries": entries}))
        return damage, entries


def _index(path: Path, whole_size: int) -> tuple[str | None, dict[str, Entry]]:
    """What is wrong with an archive, if anything, and what it holds."""
    entries: dict[str, Entry] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None and member.offset_data + member.size <= whole_size:
                archive.members = []  # type: ignore[attr-defined]  # an archive may have very many
                key, end = key_of_file(member.name)
                if not key or not member.isreg() or member.issparse():
                    continue
                before = entries.get(key, Entry())
                if end in PICTURES and before.offset < 0:
                    entries[key] = before._replace(offset=member.offset_data, size=member.size)
                elif end in ("txt", "json") and member.size <= LONGEST:
                    entries[key] = _told(before, end, _bytes(file, member.offset_data, member.size))
            if member is None and _bytes(file, archive.offset, BLOCK) == bytes(BLOCK):
                return None, entries
            return f"it is cut short or damaged; what lies before that is used, {len(entries)} entries", entries
    except (tarfile.TarError, OSError) as error:
        if getattr(error, "errno", errno.EINVAL) != errno.EINVAL:  # which is to have looked before the beginning
            raise
        return f"it cannot be read to its end ({error}); what lies before that is used, {len(entries)} entries", entries


def _bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def key_of_file(name: str) -> tuple[str, str]:
    """`"a/B.tar.JPG"` as `("a/B", "tar.jpg")`."""
    folder, slash, last = name.rpartition("/")
    key, _, end = last.partition(".")
    return (folder + slash + key if key else ""), end.lower()


def _told(entry: Entry, end: str, content: bytes) -> Entry:
    """An entry with what its text file says; the text comes before `caption` of the JSON."""
    try:
        text = content.decode() if end == "txt" else json.loads(content)["caption"]
        said = " ".join(text.split())
    except (ValueError, TypeError, KeyError, AttributeError):
        said = ""
    if end == "txt":
        return entry._replace(caption=said or entry.caption, written=True)
    return entry._replace(caption=entry.caption or said)


def _usable(id_: str, entry: Entry, skipped: dict[str, str]) -> bool:
    if entry.offset >= 0 and entry.caption:
        return True
    if entry.offset >= 0:
        skipped[id_] = "it has no caption"
    elif entry.written:
        skipped[id_] = "it has no picture"
    return False
