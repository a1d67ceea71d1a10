"""Pictures of all methods for the same prompts and noise, from the run directories that are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aptp.report.comparison.charts import shown
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
    folders: list[Path | None]

    def picture(self, file: str) -> Path | None:
        """The file in the first folder that has it; a link is not followed, so that a page shows what its runs hold."""
        places = [folder / file for folder in self.folders if folder]
        return next((place for place in places if place.is_file() and not place.is_symlink()), None)


def album(comparison: Comparison, setting: Setting) -> tuple[Gallery | None, str]:
    """A row a prompt and a column a method, real pictures and the dense model first, and what is to be said of it.

    All are of the first seed for which a run directory of the reference, or else of any method, has a gallery.
    """
    found = _prompts(comparison, setting)
    if found is None:
        return None, "No run directory with pictures is at hand; they are not part of the records."
    first, prompts = found
    rows_of_seed = [row for row in comparison.rows if (row.letter, row.seed) == (setting.letter, first.seed)]
    columns = [Column("real", "", [_folder(row, "samples/real") for row in rows_of_seed])]
    for method in [*comparison.methods(setting, "dense"), *shown(comparison)]:
        mine = [
            row
            for row in rows_of_seed
            if row.method == method and (method.kind == "dense" or row.budget == setting.budget)
        ]
        if mine:
            cost = percent(mine[0].figures["cost"]) if method.base != "dense" else ""
            folders = [_folder(row, row.result.samples) for row in mine]
            columns.append(Column(comparison.label(setting, method), cost, folders))
    rows, largest = [], 0
    for prompt in prompts:
        pictures: list[Shown | None] = []
        for column in columns:
            path = column.picture(f"{prompt['seed']:03d}.png")
            if path is None:
                pictures.append(None)
                continue
            source, side = embedded(path, LARGEST)
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
            prompts = read_gallery(trial.source.folder)["prompts"] if trial.source.folder else []
            if prompts:
                return trial, _in_turn(prompts)
    return None


def _in_turn(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str | None, list[dict[str, Any]]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.get("kind"), []).append(prompt)
    depth = max(map(len, kinds.values()))
    turns = [mine[turn] for turn in range(depth) for mine in kinds.values() if turn < len(mine)]
    return sorted(turns[:ROWS], key=prompts.index)


def _folder(trial: Trial, relative: str | None) -> Path | None:
    """A folder in a trial's run directory, where there is one and it does not lead out of it."""
    if trial.source.folder is None or relative is None:
        return None
    folder = (trial.source.folder / relative).resolve()
    return folder if folder.is_relative_to(trial.source.folder.resolve()) else None
