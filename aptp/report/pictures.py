"""The gallery: the pictures of a run, as data URIs in rows and columns."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from aptp.report.measures import method_of
from aptp.report.wording import percent

if TYPE_CHECKING:
    from aptp.report.reading import Run

SMALL = 128
"""Pictures up to this many pixels are embedded as they are and magnified without smoothing."""
LARGEST = 384
"""Larger ones are reduced to this many, where nothing else is asked: twice what they are shown at."""


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery; `routed` where the router chose this expert for the prompt."""

    source: str
    alt: str
    routed: bool


@dataclass(frozen=True)
class Gallery:
    """`columns`: name and remark; `rows`: the prompt's entry and one picture a column, `None` where it is missing."""

    columns: list[tuple[str, str]]
    rows: list[tuple[dict, list[Shown | None]]]
    side: int
    pixelated: bool


def read_gallery(folder: Path) -> dict[str, Any]:
    """`prompts` and `columns` of the gallery in a run directory, both empty where there is none."""
    try:
        gallery = json.loads((folder / "gallery/gallery.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        gallery = None
    if not isinstance(gallery, dict):
        gallery = {}
    return {key: found if isinstance(found := gallery.get(key), list) else [] for key in ("prompts", "columns")}


def gallery_of(run: Run) -> Gallery | None:
    """The gallery of a run, if there are pictures."""
    prompts, columns = run.gallery["prompts"], run.gallery["columns"]
    fractions = {expert.index: expert.fraction for expert in run.record.experts}
    several = len(fractions) > 1
    alone = None if several else method_of(run.record)
    heads = [
        (alone.name if alone else c["name"], percent(fractions.get(c["expert"])))
        if "expert" in c
        else (c["name"], _cost_of(run, c["name"]))
        for c in columns
    ]
    rows, largest = [], 0
    for place, prompt in enumerate(prompts):
        shown: list[Shown | None] = []
        for column in columns:
            path = (run.folder / column["folder"] / f"{place:03d}.png").resolve()
            found = embedded(path) if path.is_relative_to(run.folder.resolve()) else None
            if found is None:
                shown.append(None)
                continue
            source, side = found
            largest = max(largest, side)
            routed = several and "expert" in column and column["expert"] == prompt.get("expert")
            alt = f"{column['name']}: {prompt['prompt']}" + (" (routed here)" if routed else "")
            shown.append(Shown(source, alt, routed))
        rows.append((prompt, shown))
    if not largest:
        return None
    return Gallery(heads, rows, 96 if largest <= SMALL else 192, largest <= SMALL)


def _cost_of(run: Run, name: str) -> str:
    return next((percent(r.fraction) for r in run.record.results if r.name == name), "")


def embedded(path: Path, largest: int = LARGEST) -> tuple[str, int] | None:
    """A picture as a data URI, and its longer side in pixels; one that is not small is reduced to `largest`.

    `None` for one that is missing or cannot be read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            side = max(picture.size)
            if side <= SMALL:
                return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), side
            smaller = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    smaller.thumbnail((largest, largest))
    file = io.BytesIO()
    smaller.save(file, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), side
