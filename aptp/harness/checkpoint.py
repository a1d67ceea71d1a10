"""What a training stage goes on from after it was killed: its log and its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aptp.core.errors import RequestError, gist
from aptp.core.files import replacing, write_text


class Log:
    """One JSON object a step; a resumed stage keeps the first `start` lines, their scalars in `kept`, and goes on."""

    def __init__(self, path: Path, start: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines()[:start] if path.exists() else []
        self.kept = [{k: v for k, v in json.loads(line).items() if k not in ("step", "total")} for line in lines]
        write_text(path, "".join(f"{line}\n" for line in lines))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps(rounded) + "\n")
        self._file.flush()

    def settle(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())


class Checkpoint:
    """The state of a training loop in one safetensors file: modules, optimizer and the number of steps done.

    The one before the newest is kept beside it. With the run's configuration, which a resumed run shares, a number of
    steps says all else: target, schedules, the order of the data, and what is drawn at random.
    """

    def __init__(self, path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.module, self.optimizer = path, module, optimizer

    def save(self, step: int) -> None:
        """Write atomically that `step` steps are done."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors = _apart(tensors)
        with replacing(self.path) as temporary:
            save_file(tensors, temporary, {"step": str(step), "digest": _digest(tensors)})
            if self.path.exists():
                os.replace(self.path, before(self.path))

    def restore(self, warn: Callable[[str], None]) -> int:
        """Load what was saved last, if anything; the number of steps done.

        Where that is damaged, the one before takes its place, and `warn` is told.

        Raises:
            RequestError: if there is none before, or they belong to another model.
        """
        earlier = before(self.path)
        if not self.path.exists() and earlier.exists():  # killed between the two renamings of a save
            os.replace(earlier, self.path)
        if not self.path.exists():
            return 0
        try:
            return self._load()
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            damage = f"checkpoint {str(self.path)!r} is damaged ({gist(error)})"
            if not earlier.exists():
                raise RequestError(f"{damage}; delete it to repeat its stage.") from error
        warn(f"{damage}; the one before it is taken.")
        os.replace(earlier, self.path)
        return self.restore(warn)

    def _load(self) -> int:
        with safe_open(self.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, digest = int(file.metadata()["step"]), file.metadata()["digest"]
        if digest != _digest(tensors):
            raise ValueError("its values are not those that were saved")
        self.module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        return step


def before(path: Path) -> Path:
    """Where the checkpoint before the newest one lies."""
    return path.with_suffix(f".before{path.suffix}")


def steps_done(checkpoint: Path) -> int:
    """As a checkpoint says without being loaded; 0 where there is none that can be read."""
    try:
        with safe_open(checkpoint, "pt") as file:
            return int(file.metadata()["step"])
    except (OSError, LookupError, TypeError, ValueError, SafetensorError):
        return 0


def _digest(tensors: dict[str, Tensor]) -> str:
    """A hash of names and values, so that a file of the right length with other values is noticed."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and without shared memory, which safetensors refuses: a text encoder may tie its embeddings."""
    apart: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        apart[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    return apart
