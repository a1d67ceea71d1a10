"""Measured memory of a denoiser's call."""

from __future__ import annotations

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aptp.core.denoiser import Denoiser
from aptp.core.timing import repeated

BATCH = 8


@torch.no_grad()
def peak_memory_mb(denoiser: Denoiser, module: nn.Module, sample_size: int, text_tokens: int) -> float:
    """Most memory that tensors hold during a call on a batch of 8, weights included, in MB (10⁶ bytes).

    The weights, and what the call adds to them: on a GPU what the allocator says, elsewhere the storages that live at
    once.
    """
    inputs = repeated(denoiser.example_inputs(module, sample_size, text_tokens), BATCH)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    if module.device.type == "cuda":
        before = torch.cuda.memory_allocated(module.device)
        torch.cuda.reset_peak_memory_stats(module.device)
        module(**inputs)
        return (weights + torch.cuda.max_memory_allocated(module.device) - before) / 1e6
    with _LiveTensors() as live:
        module(**inputs)
    return (weights + live.peak) / 1e6


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, for as long as they live; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        known = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(answer):
            if storage.data_ptr() not in known:
                self._born(storage)
        return answer

    def _born(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.now -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if torch.is_tensor(leaf)]
