"""Which pictures a run used and which it left out, as files of the run: sets that live on the web rot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aptp.core.data import Sample
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
        lines = [_line(sample) for sample in sorted(samples, key=lambda sample: sample.id)]
        said |= {
            f"{what}_pictures": len({sample.picture_id for sample in samples}),
            f"{what}_captions": len(samples),
            f"{what}_list": _write(out / FOLDER / f"{name}.jsonl", lines),
        }
    if skipped:
        _write(out / FOLDER / "skipped.jsonl", [{"id": id_, "reason": skipped[id_]} for id_ in sorted(skipped)])
    some = dict(list(skipped.items())[:SHOWN])
    return said | {"skipped": some, "skipped_count": len(skipped)}


def _line(sample: Sample) -> dict[str, str]:
    of = {} if sample.picture is None else {"picture": sample.picture}
    return {"id": sample.id, **of, "caption": sample.caption}


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """Write JSON lines, ASCII alone; their SHA-256."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()
