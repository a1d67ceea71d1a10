"""Which pictures a run used and which it left out, as files of the run: sets that live on the web rot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aptp.core.data import Sample
from aptp.core.errors import RequestError
from aptp.core.files import write_text

FOLDER = "data"
SHOWN = 100
"""Left-out pictures that the record itself names, at most."""


def write_lists(
    out: Path, train: Sequence[Sample], validation: Sequence[Sample], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Write `data/train.jsonl`, `data/validation.jsonl` and, if anything was, `data/skipped.jsonl`.

    A line is a sample, in the order of their names: the hash of a file is that of the set, however it was read.

    Returns:
        What the record's `data` says of them.
    """
    said: dict[str, Any] = {}
    for what, name, samples in (("training", "train", train), ("validation", "validation", validation)):
        lines = _text(map(_line, _sorted(samples)))
        said |= {
            f"{what}_pictures": len({sample.picture_id for sample in samples}),
            f"{what}_captions": len(samples),
            f"{what}_list": _write(out / FOLDER / f"{name}.jsonl", lines),
        }
    if skipped:
        rows = ({"id": id_, "reason": skipped[id_]} for id_ in sorted(skipped))
        _write(out / FOLDER / "skipped.jsonl", _text(rows))
    some = dict(list(skipped.items())[:SHOWN])
    return said | {"skipped": some, "skipped_count": len(skipped)}


def check_list(said: Mapping[str, Any], what: str, samples: Sequence[Sample]) -> None:
    """Raise `RequestError` where a record's `data` lists other `training` or `validation` samples than these.

    What is computed counts them by their places; a picture that opened then and not now would move all that follow.
    """
    listed = _hash(_text(map(_line, _sorted(samples))))
    if said.get(f"{what}_list", listed) != listed:
        raise RequestError(
            f"other {what} pictures open than when the run was begun; see its data/skipped.jsonl, and bring them back "
            "or choose another --out."
        )


def _line(sample: Sample) -> dict[str, str]:
    of = {} if sample.picture is None else {"picture": sample.picture}
    return {"id": sample.id, **of, "caption": sample.caption}


def _sorted(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.id)


def _text(rows: Iterable[Mapping[str, str]]) -> str:
    """JSON lines, ASCII alone."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, text: str) -> str:
    """Its SHA-256."""
    write_text(path, text)
    return _hash(text)
