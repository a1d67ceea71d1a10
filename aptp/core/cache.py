"""The cache of what runs share. Encoded pictures and texts are rows, found by what they were made from.

A folder holds the rows of one encoder: safetensors files (shards) of bounded size, each written whole and renamed into
place, so that what was killed goes on after its last shard. Rows are read where they lie, through a memory map, so the
largest folder takes no more memory than what is asked of it, and `OPEN` maps. Cut files are noticed as they are opened;
each row has a checksum that is compared as it is read, so that hundreds of gigabytes are not read to start. What is
damaged is encoded anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aptp.core.files import replacing
from aptp.core.progress import Progress

SHARD_BYTES = 64 * 2**20
"""A shard is written as soon as it holds so much."""
SHARD_SECONDS = 30.0
"""Or when the last one was written so long ago: what a killed run loses, but for the calls of a very slow encoder."""
OPEN = 4096
"""Shards of a table that stay mapped. They hold a quarter of a terabyte, so that rows at random seldom have one opened
again; and the five tables of a run take a third of the 65,530 maps that Linux gives a process."""
KEY, CHECKSUM, BROKEN = "aptp.key", "aptp.crc32", "aptp.broken"
"""Names beside those of the rows: their keys and checksums, and in the metadata the items of which there are none."""


DAMAGE = (SafetensorError, LookupError, TypeError, ValueError)
"""What opening a damaged shard raises; an `OSError` (no rights, too many files) says nothing of what is in it."""


class Encoded(NamedTuple):
    """Rows of items by name, each [items, …], and why others have none, by their places among those asked for."""

    rows: dict[str, Tensor]
    broken: dict[int, str]
    barred: Mapping[int, str] = MappingProxyType({})
    """Of those that may have one another time: that is not remembered."""


def key_of(*parts: object) -> bytes:
    """16 bytes that say what a row was made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:16]


@dataclass
class Table:
    """The rows of items in a folder of the cache, in the order of their keys; those of equal keys are one.

    Several tables and processes may share a folder: one at a time encodes, and the others find its rows.
    """

    folder: Path
    keys: Sequence[bytes]
    encode: Callable[[list[int]], Encoded]
    """Encodes the items at these places; the same places together give the same bits."""
    chunk: int
    """Items that are encoded at once."""
    task: str
    """What that is called, e.g. `"encoding training pictures"`."""
    progress: Progress
    _opened: Callable[[Path], _Shard] = field(init=False)
    _mended: set[Path] = field(default_factory=set)
    _barred: dict[bytes, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._find()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def missing(self) -> list[int]:
        """Places of the items that are yet to be encoded, the first of each key."""
        first: dict[bytes, int] = {}
        for place in np.flatnonzero(self._shard < 0).tolist():
            if place not in self.broken:
                first.setdefault(self.keys[place], place)
        return list(first.values())

    def fill(self) -> None:
        """Encode what is missing, unless another process does: then wait for it."""
        if not self.missing:
            return
        with alone(self.folder, self.progress, "encoding"):
            self._find()
            for stale in self.folder.glob(".*.safetensors.*"):  # of a process that was killed
                stale.unlink()
            self._encode(self.missing)
            self._find()

    def __getitem__(self, index: Int[Tensor, "rows"]) -> dict[str, Tensor]:
        """Copies of rows, by name.

        Raises:
            OSError: for one that is damaged again as soon as it was encoded anew.
        """
        try:
            return self._read(index.numpy())
        except _DamagedError as damage:
            self._mend(damage.path)
        return self[index]

    def whole(self) -> dict[str, Tensor]:
        """All rows."""
        return self[torch.arange(len(self))]

    def _mend(self, path: Path) -> None:
        """Encode anew what a damaged shard held, unless another process already did."""
        if path in self._mended:
            raise OSError(f"{str(path)!r} is damaged as soon as it is written: check the disk.")
        self._mended.add(path)
        with alone(self.folder, self.progress, "encoding"):
            if not _is_whole(path):
                path.unlink(missing_ok=True)
        self._find()
        self.fill()

    @torch.no_grad()
    def _encode(self, places: list[int]) -> None:
        parts: list[dict[str, Tensor]] = []
        broken: dict[str, str] = {}
        written = time.monotonic()
        with self.progress.task(self.task, len(places)) as advance:
            for start in range(0, len(places), self.chunk):
                chunk = places[start : start + self.chunk]
                encoded = self.encode(chunk)
                broken |= {self.keys[place].hex(): why for place, why in encoded.broken.items()}
                self._barred |= {self.keys[place]: why for place, why in encoded.barred.items()}
                none = encoded.broken.keys() | encoded.barred.keys()
                if good := [self.keys[place] for place in chunk if place not in none]:
                    keys = torch.frombuffer(bytearray(b"".join(good)), dtype=torch.uint8).view(-1, 16)
                    parts.append({KEY: keys, **{name: rows.float().cpu() for name, rows in encoded.rows.items()}})
                size = sum(rows.nbytes for part in parts for rows in part.values())
                last = start + self.chunk >= len(places)
                if (parts or broken) and (last or size >= SHARD_BYTES or time.monotonic() - written >= SHARD_SECONDS):
                    _write(self.folder, parts, broken)
                    parts, broken, written = [], {}, time.monotonic()
                advance(len(chunk))

    def _find(self) -> None:
        """Where the rows of the keys lie: shard and place in it, −1 where there is none."""
        shards = list(_shards(self.folder))
        self._paths = [shard.path for shard in shards]
        self._opened = lru_cache(OPEN)(_Shard)
        stored = np.concatenate([np.empty(0, "S16"), *(shard.keys for shard in shards)])
        sizes = [len(shard.keys) for shard in shards]
        shard = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.empty(0, int), *map(np.arange, sizes)])
        order = np.argsort(stored, kind="stable")
        wanted = np.frombuffer(b"".join(self.keys), "S16")
        at = np.searchsorted(stored, wanted, sorter=order)
        place = np.append(order, -1)[at]
        found = np.append(stored, b"")[place] == wanted
        self._shard = np.where(found, np.append(shard, -1)[place], -1)
        self._row = np.where(found, np.append(row, -1)[place], -1)
        why = self._barred | {key: reason for shard in shards for key, reason in shard.broken.items()}
        self.broken = {i: why[key] for i, key in enumerate(self.keys) if key in why and self._shard[i] < 0}

    def _read(self, index: np.ndarray) -> dict[str, Tensor]:
        shard, row = self._shard[index], self._row[index]
        if (shard < 0).any():
            raise OSError(f"{self.task}: {self.broken.get(int(index[shard < 0][0]), 'a row is missing')}.")
        found: dict[str, Tensor] = {}
        for number in np.unique(shard):
            at = np.flatnonzero(shard == number)
            for name, rows in self._open(self._paths[number]).read(row[at]).items():
                if name not in found:
                    found[name] = rows.new_empty(len(index), *rows.shape[1:])
                found[name][at] = rows
        return found

    def _open(self, path: Path) -> _Shard:
        try:
            return self._opened(path)
        except (*DAMAGE, FileNotFoundError) as error:
            raise _DamagedError(path) from error


def is_writable(folder: Path) -> bool:
    """Whether a folder of the cache is there, or can be made, and takes new files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def alone(folder: Path, progress: Progress, doing: str) -> Iterator[None]:
    """Hold a folder of the cache, once no other process does; `doing` is what the holder does, e.g. `"encoding"`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"waiting for another run, which is {doing} into {str(folder)!r}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _DamagedError(ValueError):
    """A row whose checksum does not fit, or a shard that no longer is what it was."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class _Held(NamedTuple):
    """What a file holds: the keys of its rows, and why items have none. Its name is a hash of that."""

    path: Path
    keys: np.ndarray
    broken: dict[bytes, str]

    @classmethod
    def read(cls, path: Path) -> _Held:
        """Without its rows. Raises `DAMAGE`."""
        with safe_open(path, "np") as file:
            keys = file.get_tensor(KEY).view("S16").ravel()
            broken = json.loads(file.metadata()[BROKEN])
        if path.stem != _name(keys, broken):
            raise ValueError(f"{str(path)!r} holds rows of other items.")
        return cls(path, keys, {bytes.fromhex(key): str(why) for key, why in broken.items()})


class _Shard:
    """One file, its rows mapped into memory. Raises `DAMAGE`."""

    def __init__(self, path: Path) -> None:
        self.path, self.keys = path, _Held.read(path).keys
        with safe_open(path, "pt") as file:
            self._rows = {name: file.get_tensor(name) for name in sorted(set(file.keys()) - {KEY, CHECKSUM})}
            self._checksums = file.get_tensor(CHECKSUM)

    def read(self, index: Int[np.ndarray, "rows"]) -> dict[str, Tensor]:
        """Copies of rows that are as they were written."""
        rows = {name: values[index] for name, values in self._rows.items()}
        keys = torch.from_numpy(self.keys[index].view(np.uint8)).view(-1, 16)
        if not torch.equal(_checksums({KEY: keys, **rows}), self._checksums[index]):
            raise _DamagedError(self.path)
        return rows


def _shards(folder: Path) -> Iterator[_Held]:
    """What the shards of a folder hold, the damaged ones deleted."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            yield _Held.read(path)
        except DAMAGE:
            path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process deleted it
            continue


def _is_whole(path: Path) -> bool:
    try:
        shard = _Shard(path)
        shard.read(np.arange(len(shard.keys)))
    except (*DAMAGE, FileNotFoundError):
        return False
    return True


def _write(folder: Path, parts: list[dict[str, Tensor]], broken: dict[str, str]) -> None:
    none = {KEY: torch.empty(0, 16, dtype=torch.uint8)}
    rows = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]} if parts else none
    with replacing(folder / f"{_name(rows[KEY].numpy(), broken)}.safetensors", lasting=False) as temporary:
        save_file({**rows, CHECKSUM: _checksums(rows)}, temporary, {BROKEN: json.dumps(broken)})


def _name(keys: np.ndarray, broken: dict[str, str]) -> str:
    return hashlib.sha256(keys.tobytes() + json.dumps(broken, sort_keys=True).encode()).hexdigest()[:24]


def _checksums(rows: dict[str, Tensor]) -> Int[Tensor, "rows"]:
    """A CRC-32 of each row: its key, and its values by name."""
    sums = [0] * len(rows[KEY])
    for name in sorted(rows):
        values = rows[name].numpy()
        sums = [zlib.crc32(row, before) for row, before in zip(values, sums, strict=True)]
    return torch.tensor(sums, dtype=torch.int64)
