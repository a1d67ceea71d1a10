"""Configurations that runs have kept, also of earlier versions, and whether a request is for the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aptp.config import Choice, RunConfig, read_yaml
from aptp.core.errors import RequestError
from aptp.host import default_host

ONCE: dict[str, Any] = {
    "search.start": None,
    "search.code_rate": None,
    "evaluate.exam": 128,
    "recover.restart": True,
}
"""What the lack of a key meant before it existed, where its part of a kept configuration is there."""


OF_A_SEARCH = ("search.code_rate",)
"""Of these, what means nothing where nothing is searched."""


def searches(config: Mapping[str, Any]) -> bool:
    """Whether a kept configuration searches for its codes; one of a pruner that nobody knows any more may."""
    pruner = config.get("pruner")
    if pruner is None:
        return True
    try:
        return bool(default_host().target("pruner", Choice.model_validate(pruner).name).searches)
    except RequestError:
        return True


def once(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version meant by keys that it did not know and a kept configuration lacks, by dotted name."""
    places = ((name, *name.split(".")) for name in ONCE)
    return {
        name: ONCE[name] for name, part, key in places if isinstance(kept.get(part), Mapping) and key not in kept[part]
    }


def same_request(config: RunConfig, kept: Mapping[str, Any]) -> bool:
    """Whether what was kept asks for a settled configuration (see `difference`)."""
    return difference(config, kept) is None


def difference(config: RunConfig, kept: Mapping[str, Any]) -> str | None:
    """The first thing in which what was kept asks for another configuration than a settled one; `None` if it does not.

    What an earlier version did not know is what it did, where that is known (`ONCE`), or else has its default.
    """
    if kept == config.model_dump(mode="json"):
        return None  # whatever host knows its plugins
    kept = {name: dict(part) if isinstance(part, Mapping) else part for name, part in kept.items()}
    for name, value in once(kept).items():
        part, key = name.split(".")
        kept[part][key] = value if name not in OF_A_SEARCH or searches(kept) else getattr(config.search, key)
    try:
        theirs = RunConfig.model_validate(kept).resolved(default_host()).settled()
    except (ValidationError, RequestError):
        return "which this version cannot read"
    return _first_difference(config.model_dump(mode="json"), theirs.model_dump(mode="json"))


def _first_difference(mine: Any, theirs: Any, name: str = "") -> str | None:
    """Of two values, in words, with the dotted name of the first that is not the same in both."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        inside = (_first_difference(mine.get(k), theirs.get(k), f"{name}.{k}".lstrip(".")) for k in {**mine, **theirs})
        return next((found for found in inside if found), None)
    return None if mine == theirs else f"{name} is {json.dumps(theirs)} there, not {json.dumps(mine)}"


def check_folder(config: RunConfig, out: Path, resume: bool) -> None:
    """Raise `RequestError` where `out` cannot be the run directory of a settled configuration; changes nothing.

    Hidden files do not count: a run that was killed as it began may leave one that is half written.
    """
    file = out / "config.yaml"
    if file.exists():
        if apart := difference(config, read_yaml(file, "configuration")):
            raise RequestError(
                f"run directory {str(out)!r} belongs to another configuration ({apart}); choose another --out."
            )
        if not resume:
            raise RequestError(f"run directory {str(out)!r} holds this run already; add --resume to go on with it.")
    elif out.exists() and (not out.is_dir() or any(not entry.name.startswith(".") for entry in out.iterdir())):
        raise RequestError(f"{str(out)!r} is not empty and no run directory; choose another --out.")
