"""What the data sets on disk share: names that stay inside their folder, splits by hash, fingerprints, empty splits."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from aptp.core.data import Sample, Split
from aptp.core.errors import RequestError

Splits = dict[Split, list[Sample]]


def in_validation(key: str, share: float) -> bool:
    """Whether what is called so belongs to validation; letter case and spacing make no difference."""
    text = " ".join(key.split()).casefold()
    try:
        content = text.encode("utf-8", "surrogateescape")  # as the names of files that are no UTF-8
    except UnicodeEncodeError:
        content = text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(content).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def divided(samples: Sequence[Sample], share: float) -> Splits:
    """A set without a validation part, divided by a hash of the pictures' names: more pictures move none."""
    held_out = [in_validation(sample.picture_id, share) for sample in samples]
    return {
        "train": [sample for sample, out in zip(samples, held_out, strict=True) if not out],
        "validation": [sample for sample, out in zip(samples, held_out, strict=True) if out],
    }


def of_split(what: str, splits: Splits, split: Split, skipped: Mapping[str, str]) -> Sequence[Sample]:
    """The samples of a split of a set that is called `what` in an error.

    Raises:
        RequestError: if there are none.
    """
    if split not in splits:
        raise ValueError(f"{what} has no split {split!r}: choose 'train' or 'validation'.")
    if samples := splits[split]:
        return samples
    if skipped:
        name, reason = next(iter(skipped.items()))
        why = f"{len(skipped)} left out, the first, {name!r}, because {reason}"
    else:
        why = "it holds no captioned picture" if not any(splits.values()) else "give more, or another share"
    raise RequestError(f"{what} has no usable {split} picture: {why}.")


def folder_of(what: str, path: str, right: str) -> Path:
    """The folder `path`. Raises `RequestError` that says what would be `right` if it is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        wrong = "is a file" if folder.exists() else "does not exist"
        raise RequestError(f"{what} folder {path!r} {wrong}; give {right}.")
    return folder


def inside(name: str, where: str) -> str:
    """`name` with plain slashes. Raises `RequestError` if it points out of its folder; `where` says who names it."""
    plain = posixpath.normpath(name.strip().replace("\\", "/"))
    if re.match(r"/|\.\./|\.\.$|[A-Za-z]:", plain):
        raise RequestError(f"{where} names {name!r}, which is outside its folder; give names relative to it.")
    return plain


def size_of(path: Path) -> int | None:
    """Bytes of a file, or None where there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None


def fingerprint_of(what: str, rows: Iterable[object]) -> str:
    """A hash of rows that JSON can hold."""
    sha = hashlib.sha256(f"{what}\n".encode())
    for row in rows:
        sha.update(json.dumps(row).encode() + b"\n")
    return sha.hexdigest()
