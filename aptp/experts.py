"""The denoisers that a routed pipeline chooses from: its experts, and the dense model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from aptp.routing import DENSE


class Experts:
    """Experts by number, and under `DENSE` the dense model; an expert is read when it is first asked for.

    Threads may share them: each is read once.

    Args:
        dense: the dense model, on the device and in the type in which experts are wanted.
        read: reads an expert, by its number and in a type.
        memory_limit: bytes of weights, the dense model's included, that may be on the device at once. Who is asked for
            gets in whatever its size; whoever was not asked for longest and is not held makes room: on a GPU it waits
            in main memory, on the CPU it is forgotten and read again (the dense model stays).
    """

    def __init__(
        self, dense: nn.Module, read: Callable[[int, torch.dtype], nn.Module], memory_limit: int | None = None
    ) -> None:
        self.device, self.dtype, self.memory_limit = dense.device, dense.dtype, memory_limit
        self._read = read
        self._loaded = {DENSE: dense}  # in the order of their last use
        self._holders: Counter[int] = Counter()
        self._lock = threading.RLock()

    def __getitem__(self, index: int) -> nn.Module:
        with self._lock:
            model = self._loaded.pop(index, None)
            if model is None:
                model = self._read(index, self.dtype)
            self._make_room(size_of(model))
            self._loaded[index] = model
            try:
                return nn.Module.to(model, self.device)
            except Exception:  # out of memory: the half of it that came through would stay
                nn.Module.to(model, "cpu")
                raise

    @contextmanager
    def held(self, index: int) -> Iterator[nn.Module]:
        """An expert that stays on the device meanwhile, whoever else is asked for."""
        with self._lock:
            model = self[index]
            self._holders[index] += 1
        try:
            yield model
        finally:
            with self._lock:
                self._holders[index] -= 1

    def is_ready(self, index: int) -> bool:
        """Whether an expert is on the device already."""
        with self._lock:
            return index in self._loaded and self._loaded[index].device.type == self.device.type

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have experts on `device` and in `dtype` from now on. The dense model has been moved with its pipeline."""
        with self._lock:
            self.device, self.dtype = device, dtype
            for index, model in self._loaded.items():
                if index != DENSE:
                    nn.Module.to(model, "cpu", dtype)  # until it is asked for; diffusers' own `to` remarks on casts

    def _make_room(self, size: int) -> None:
        if self.memory_limit is None:
            return
        ready = [index for index in self._loaded if self.is_ready(index)]
        excess = size + sum(size_of(self._loaded[index]) for index in ready) - self.memory_limit
        for index in ready:
            if excess <= 0:
                return
            if self._holders[index] or (self.device.type == "cpu" and index == DENSE):
                continue
            model = self._loaded[index]
            excess -= size_of(model)
            if self.device.type == "cpu":
                del self._loaded[index]
            else:
                nn.Module.to(model, "cpu")


def size_of(model: nn.Module) -> int:
    """Bytes of a model's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
