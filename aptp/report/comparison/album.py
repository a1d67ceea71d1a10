"""Pictures of all methods for the same prompts and noise, from the run directories that are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aptp.report.comparison.charts import shown
from aptp.report.comparison.sources import Source
from aptp.report.comparison.trials import Comparison, Setting, Trial
from aptp.report.pictures import SMALL, Gallery, Shown, embedded, read_gallery
from aptp.report.wording import percent

ROWS = 8
"""Prompts at most."""
LARGEST = 192
"""Pixels to which large pictures are reduced."""


@dataclass(frozen=True)
class Column:
    """A column of pictures, which several runs may hold."""

    name: str
    cost: str
    folders: list[tuple[Source, str]]
    """Runs, and folders relative to their own."""

    def picture(self, file: str) -> tuple[str, int] | None:
        """The first that can be read and does not lead out of its run, and its longer side."""
        paths = (source.path(f"{folder}/{file}") for source, folder in self.folders)
        return next((found for path in paths if path and (found := embedded(path, LARGEST))), None)


def album(comparison: Comparison, setting: Setting) -> tuple[Gallery | None, str]:
    """A row a prompt and a column a method, real pictures and the dense model first, and what is to be said of it.

    All are of the first seed for which a run directory of the reference, or else of any method, has a gallery.
    """
    found = _prompts(comparison, setting)
    if found is None:
        return None, "No run directory with pictures is at hand; they are not part of the records."
    first, prompts = found
    rows_of_seed = [row for row in comparison.rows if (row.letter, row.seed) == (setting.letter, first.seed)]
    columns = [Column("real", "", [(row.source, "samples/real") for row in rows_of_seed])]
    for method in [*comparison.methods(setting, "dense"), *shown(comparison)]:
        mine = [
            row
            for row in rows_of_seed
            if row.method == method and (method.kind == "dense" or row.budget == setting.budget)
        ]
        if mine:
            cost = percent(mine[0].figures["cost"]) if method.base != "dense" else ""
            folders = [(row.source, row.result.samples) for row in mine if row.result.samples]
            columns.append(Column(comparison.label(setting, method), cost, folders))
    rows, largest = [], 0
    for prompt in prompts:
        pictures: list[Shown | None] = []
        for column in columns:
            found_picture = column.picture(f"{prompt['seed']:03d}.png")
            if found_picture is None:
                pictures.append(None)
                continue
            source, side = found_picture
            largest = max(largest, side)
            pictures.append(Shown(source, f"{column.name}: {prompt['prompt']}", routed=False))
        rows.append((prompt, pictures))
    if not largest:
        return None, "The run directories hold no pictures of the evaluation prompts."
    kept = [place for place in range(len(columns)) if any(row[place] for _, row in rows)]
    said = f"Seed {first.seed}. A routed method draws each prompt with the expert that serves it."
    if missing := [column.name for place, column in enumerate(columns) if place not in kept]:
        said += f" Without pictures at hand: {'; '.join(missing)}."
    heads = [(columns[place].name, columns[place].cost) for place in kept]
    shorter = [(prompt, [row[place] for place in kept]) for prompt, row in rows]
    return Gallery(heads, shorter, 72 if largest <= SMALL else 96, largest <= SMALL), said


def _prompts(comparison: Comparison, setting: Setting) -> tuple[Trial, list[dict[str, Any]]] | None:
    """The first trial whose run has a gallery, and its prompts, a few of each kind in turn."""
    for method in comparison.methods(setting):
        for trial in comparison.runs(setting, method) if method.kind != "dense" else ():
            known = trial.source.path("gallery/gallery.json")
            prompts = read_gallery(trial.source.folder)["prompts"] if trial.source.folder and known else []
            if prompts := [prompt for prompt in prompts if _is_prompt(prompt)]:
                return trial, _in_turn(prompts)
    return None


def _is_prompt(entry: Any) -> bool:
    """Whether an entry of a gallery says what the album needs: another program may have written it."""
    wanted = {"prompt": str, "seed": int, "kind": str | None}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), type_) for key, type_ in wanted.items())


def _in_turn(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str | None, list[dict[str, Any]]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.get("kind"), []).append(prompt)
    depth = max(map(len, kinds.values()))
    turns = [mine[turn] for turn in range(depth) for mine in kinds.values() if turn < len(mine)]
    return sorted(turns[:ROWS], key=prompts.index)
