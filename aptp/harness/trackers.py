"""Trackers: TensorBoard and Weights & Biases get each step's figures, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aptp.config import RunConfig

PROJECT = "aptp"


class Trackers:
    """What `config.trackers` names; TensorBoard's files lie in `logs/tensorboard/` of the run directory.

    Steps are counted over all stages and methods, one after the other. A resumed run logs what it finds done again.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        folders = ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs" / "tensorboard"))
        self._accelerator = Accelerator(log_with=list(config.trackers), project_config=folders)
        own = {"wandb": {"name": out.name, "dir": str(out)}}
        self._accelerator.init_trackers(PROJECT, dict(_flat(config.model_dump(mode="json"))), own)
        self._steps = 0

    def log(self, stage: str, values: Mapping[str, float]) -> None:
        """The figures of one step, each under the name of its stage."""
        self._accelerator.log({f"{stage}/{name}": value for name, value in values.items()}, step=self._steps)
        self._steps += 1

    def end(self) -> None:
        """Write what is not written yet."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration as dotted names and plain values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
