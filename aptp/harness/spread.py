"""Own phases of recovery as processes of their own, wherever something starts them: experts are independent.

Each leaves its last checkpoint and its log, from which recovery goes on as if it had trained the expert itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from aptp.core.child import REFUSED, Start, Task, reason
from aptp.core.errors import RequestError
from aptp.core.files import write_json
from aptp.harness.checkpoint import steps_done

if TYPE_CHECKING:
    from aptp.harness.workspace import Workspace

POLL_SECONDS = 0.5
WARNING = "warning: "


class OwnPhase(NamedTuple):
    """What an expert trains on alone, and how long."""

    pictures: Int[Tensor, "mine"]
    steps: int

    @staticmethod
    def file(out: Path, index: int) -> Path:
        """Where that of a run's expert lies."""
        return out / f"checkpoints/recover-{index:02d}.json"

    def save(self, out: Path, index: int) -> None:
        """Leave it for the process that trains the expert."""
        write_json(self.file(out, index), {"pictures": self.pictures.tolist(), "steps": self.steps})

    @classmethod
    def load(cls, out: Path, index: int) -> OwnPhase:
        """Read what `save` wrote. Raises `RequestError` for anything else."""
        try:
            said = json.loads(cls.file(out, index).read_text(encoding="utf-8"))
            return cls(torch.tensor(said["pictures"]), int(said["steps"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RequestError(
                f"{str(out)!r} is no run directory that says how expert {index} is recovered; aptp run --executor ray "
                "makes one."
            ) from error


def spread(work: Workspace, phases: Mapping[int, OwnPhase], start: Start) -> None:
    """Carry out own phases, by the number of the expert, each in a process of its own that goes on where one stopped.

    Raises:
        RequestError, RuntimeError: with what the first process to fail says; the others are ended.
    """
    running: dict[int, Task] = {}
    work.path("logs").mkdir(exist_ok=True)
    with work.progress.task("recovering experts apart", len(phases)) as advance:
        try:
            for index, phase in phases.items():
                if steps_done(work.path(f"checkpoints/recover-{index:02d}.safetensors")) == phase.steps:
                    advance()
                    continue
                phase.save(work.out, index)
                running[index] = start(["-m", "aptp", "recover-expert", str(work.out), str(index)], _log(work, index))
            while running:
                for index in [index for index, task in running.items() if _ended(work, index, task)]:
                    del running[index]
                    advance(note=f"expert {index} is done")
                time.sleep(POLL_SECONDS)
        finally:
            for task in running.values():
                task.kill()


def _ended(work: Workspace, index: int, task: Task) -> bool:
    """Whether a process is done; its warnings become the run's."""
    status, log = task.poll(), _log(work, index)
    if status is None:
        return False
    if status:
        said = reason(f"the recovery of expert {index}", status, log)
        raise RequestError(said) if status == REFUSED else RuntimeError(said)
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(WARNING):
            work.warn(line.removeprefix(WARNING))
    return True


def _log(work: Workspace, index: int) -> Path:
    """What a process prints."""
    return work.path(f"logs/recover-{index:02d}.log")
