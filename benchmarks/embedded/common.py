"""What the training scripts of the embedded model share: fresh scenes, time-based schedules, logs, safe saving."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from aptp.plugins.datasets._kinds import KINDS, Scene

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "aptp" / "assets"
LOGS = HERE / "logs"


def fresh_scenes(rng: Random, count: int, weights: tuple[float, ...] = (1, 1, 1, 1, 1)) -> list[Scene]:
    """Training combinations (never held out), the kinds drawn by weight (plain, shape, pair, pattern, word)."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = rng.choices(KINDS, weights)[0].random(rng)
        if not scene.held_out():
            scenes.append(scene)
    return scenes


def pixels(scenes: list[Scene], rng: Random) -> Tensor:
    """Pictures of scenes, [batch, 3, 64, 64] in [-1, 1]."""
    array = np.stack([np.asarray(scene.draw(rng)) for scene in scenes])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


class Clock:
    """Minutes of training, counted over resumed runs, and the learning-rate factor that follows them.

    The factor rises over `warmup` steps from step `first` on, stays at one, and falls linearly to zero over the last
    `decay` minutes.
    """

    def __init__(self, minutes: float, decay: float, warmup: int, spent: float = 0.0, first: int = 0) -> None:
        self.minutes, self.decay, self.warmup, self.first = minutes, decay, warmup, first
        self.start = time.monotonic() - 60 * spent

    @property
    def spent(self) -> float:
        return (time.monotonic() - self.start) / 60

    def factor(self, step: int) -> float:
        left = max(0.0, self.minutes - self.spent)
        return min(1.0, (step + 1 - self.first) / self.warmup, left / self.decay)

    def done(self) -> bool:
        return self.spent >= self.minutes


def log(name: str, **values: float | int | str) -> None:
    """Append one line to logs/NAME.jsonl."""
    LOGS.mkdir(exist_ok=True)
    line = json.dumps({key: round(v, 5) if isinstance(v, float) else v for key, v in values.items()})
    print(line, flush=True)
    with open(LOGS / f"{name}.jsonl", "a") as file:
        file.write(line + "\n")


def checkpoint(path: Path, state: dict[str, object]) -> None:
    """Keep a resumable state (local to the training machine, never shipped), atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def publish(folder: Path, target: Path) -> None:
    """Move the files of a freshly written folder into `target`, each replaced in one step, and remove the folder."""
    for source in sorted(folder.rglob("*")):
        if source.is_file():
            place = target / source.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            source.chmod(0o644)
            os.replace(source, place)
    shutil.rmtree(folder)
