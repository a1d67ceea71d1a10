"""Which runs a sweep is: its file, and the cells of its grid, all checked before the first one starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from aptp.config import RunConfig, layered, read_yaml
from aptp.core.errors import RequestError
from aptp.core.options import Options
from aptp.host import Host, option_error
from aptp.kept import check_folder
from aptp.models import find_model

VALUE_LENGTH = 40
"""Characters that a value may take in the name of a run; a longer one is cut and ends in a hash."""
NAME_LENGTH = 200
"""Characters that a name may have: file systems take 255, and files beside a run add an ending."""

Grid = dict[str, list[Any]]
"""Keys of the configuration, dotted or not, and the values that each takes in turn."""


class NamedRun(Options):
    """One row of a comparison: what it sets, and a grid of its own over the sweep's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$")
    set: dict[str, Any] = Field({}, description="its differences from the base")
    grid: Grid = Field({}, description="joins the sweep's; takes the place of an axis that both have")


class Sweep(Options):
    """A sweep's file: every run of `runs`, or the base where there are none, with every combination of the grid."""

    preset: str | None = None
    base: dict[str, Any] = Field({}, description="differences of all runs from the default, or from the preset")
    grid: Grid = Field({})
    runs: list[NamedRun] = Field([])

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a file; its base may be the name of another one, from where it lies.

        Raises:
            RequestError: in one sentence, for one that is no sweep.
        """
        data = read_yaml(path, "sweep")
        if isinstance(data.get("base"), str):
            data["base"] = read_yaml(path.parent / data["base"], "base")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RequestError(option_error(f"the sweep {str(path)!r}", cls, error)) from error


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its name, how it differs from the base, and its whole configuration, settled."""

    name: str
    differences: dict[str, Any]
    config: RunConfig


def cells(sweep: Sweep, host: Host, last: Mapping[str, Any] | None = None) -> list[Cell]:
    """Every run of a sweep, in the order in which they are started.

    Args:
        last: what all runs say after their differences, such as an option of the strategies that the grid varies.

    Raises:
        RequestError: in one sentence, for the first thing that is wrong: an unknown name, a bad value, an axis without
            values or with a repeated one, a key set in two ways, two cells of one name or one configuration.
    """
    if not sweep.grid and not sweep.runs:
        raise RequestError("the sweep has neither a grid nor runs; name what differs between its runs.")
    found: list[Cell] = []
    names: set[str] = set()
    configs: dict[str, str] = {}
    for name, differences in _combinations(sweep):
        config = layered(sweep.preset, [sweep.base, differences, last or {}]).resolved(host).settled()
        find_model(config.model)
        if len(name) > NAME_LENGTH:
            raise RequestError(f"the run {name[:50] + '…'!r} has a name of {len(name)} characters; name it under runs.")
        if name.casefold() in names:
            raise RequestError(f"two runs of the sweep would be named {name!r}; name them apart under runs.")
        if (other := configs.setdefault(config.to_yaml(), name)) != name:
            raise RequestError(f"the runs {other!r} and {name!r} have the same configuration; drop one of them.")
        names.add(name.casefold())
        found.append(Cell(name, differences, config))
    return found


def check_folders(found: list[Cell], folder: Path) -> None:
    """Raise `RequestError` where a cell's folder under the sweep's belongs to something else; changes nothing."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--out {str(folder)!r} is a file; name a folder.")
    if (folder / "record.json").exists():
        raise RequestError(f"--out {str(folder)!r} is the folder of a run; name another for a sweep.")
    for cell in found:
        check_folder(cell.config, folder / cell.name, resume=True)


def _combinations(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of runs with their differences."""
    runs: list[NamedRun | None] = [*sweep.runs] or [None]
    for run in runs:
        grid = {**sweep.grid, **(run.grid if run else {})}
        for key, values in grid.items():
            _check_axis(key, values)
            if run and key in run.set:
                raise RequestError(
                    f"the run {run.name!r} sets {key!r}, which the grid varies; give it a grid of its own."
                )
        for chosen in itertools.product(*grid.values()):
            point = dict(zip(grid, chosen, strict=True))
            parts = [run.name] if run else []
            yield (
                ",".join(parts + [f"{key}={_text(value)}" for key, value in point.items()]),
                {
                    **(run.set if run else {}),
                    **point,
                },
            )


def _check_axis(key: str, values: list[Any]) -> None:
    if not values:
        raise RequestError(f"the grid has no value for {key!r}; give at least one.")
    texts = [_json(value) for value in values]
    if repeated := [text for text in texts if texts.count(text) > 1]:
        raise RequestError(f"the grid has {repeated[0]} more than once for {key!r}; once is right.")


def _text(value: Any) -> str:
    """A value as a part of a file name: the same for the same value, and short."""
    if isinstance(value, Mapping) and "name" in value:
        value = [value["name"], *(part for key, option in value.items() if key != "name" for part in (key, option))]
    whole = value if isinstance(value, str) else _json(value)
    text = re.sub(r"[^A-Za-z0-9_.+-]+", "-", whole).strip("-.") or "empty"
    if len(text) <= VALUE_LENGTH:
        return text
    return f"{text[: VALUE_LENGTH - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
