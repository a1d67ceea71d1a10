"""Trackers: TensorBoard and Weights & Biases get each step's figures, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aptp.config import RunConfig
from aptp.core.errors import RequestError, gist

PROJECT = "aptp"


class Trackers:
    """What `config.trackers` names; TensorBoard's files lie in `logs/tensorboard/` of the run directory.

    Steps are counted over all stages and methods, one after the other. A resumed run logs what it finds done again: in
    TensorBoard's files that takes the place of what was there, at Weights & Biases it is a run of its own.

    Raises:
        RequestError: if one does not start, as without an account.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        folders = ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs" / "tensorboard"))
        self._accelerator = Accelerator(log_with=list(config.trackers), project_config=folders)
        own = {"wandb": {"name": out.name, "dir": str(out)}, "tensorboard": {"purge_step": 0}}
        try:
            self._accelerator.init_trackers(PROJECT, dict(_flat(config.model_dump(mode="json"))), own)
        except Exception as error:
            names, why = ", ".join(config.trackers), gist(error).rstrip(".")
            raise RequestError(f"trackers {names}: {why}; mend that, or drop what cannot start.") from error
        self._steps = 0

    def log(self, stage: str, values: Mapping[str, float]) -> None:
        """The figures of one step, each under the name of its stage."""
        self._accelerator.log({f"{stage}/{name}": value for name, value in values.items()}, step=self._steps)
        self._steps += 1

    def end(self, failed: bool) -> None:
        """Write what is not written yet, and say how the run ended where that is kept."""
        for tracker in self._accelerator.trackers:
            if tracker.name == "wandb":
                tracker.tracker.finish(exit_code=int(failed))
            else:
                tracker.finish()


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration as dotted names and plain values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
