"""What a run directory holds, as far as the run got: missing parts are empty, half-written lines are skipped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aptp.core.architecture import Architecture
from aptp.core.record import Record
from aptp.report.measures import method_of
from aptp.report.pictures import read_gallery

Log = list[dict[str, Any]]
"""One mapping a training step."""


@dataclass(frozen=True)
class Run:
    """A run directory, read."""

    folder: Path
    record: Record
    config: str
    """As YAML."""
    search: Log
    recoveries: dict[str, Log]
    """Method → its recovery, in the order of the table."""
    architectures: list[Architecture]
    """One an expert, in order; empty where the experts were not yet sliced."""
    gallery: dict[str, Any]
    """`prompts` and `columns`, both empty where there is none."""


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        RequestError: if it has no record, or an architecture in it is broken.
    """
    record = Record.load(folder / "record.json")
    config = folder / "config.yaml"
    method = method_of(record)
    logs = {method.name if method else "this run": read_log(folder / "logs/recover.jsonl")}
    for path in sorted(folder.glob("baselines/*/logs/recover.jsonl")):
        logs[path.parents[1].name] = read_log(path)
    return Run(
        folder,
        record,
        config.read_text(encoding="utf-8") if config.is_file() else yaml.safe_dump(record.config, sort_keys=False),
        read_log(folder / "logs/search.jsonl"),
        {name: log for name, log in logs.items() if log},
        [Architecture.load(path) for path in sorted(folder.glob("experts/*/architecture.json"))],
        read_gallery(folder),
    )


def read_log(path: Path) -> Log:
    """The steps of a log that can be read; the last line of a run that was stopped may not."""
    if not path.is_file():
        return []
    steps = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and "step" in values:
            steps.append(values)
    return steps
