"""Wall time of calls: whole models in turns, or the parts of one."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROUNDS = 5
CLOCK = time.perf_counter
"""What tells the time, in seconds, where no GPU computes."""


def repeated(inputs: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Keyword arguments for one input, for `batch` of them."""
    return {
        name: repeated(value, batch) if isinstance(value, Mapping) else value.repeat(batch, *[1] * (value.ndim - 1))
        for name, value in inputs.items()
    }


@torch.no_grad()
def latencies_ms(modules: Sequence[nn.Module], inputs: Mapping[str, Any], rounds: int = ROUNDS) -> list[float]:
    """Median wall time of a call of each module, all on one device, in milliseconds.

    The modules take turns, so that what else the machine does meanwhile slows all of them alike.
    """
    taken, device = [], modules[0].device  # diffusers looks through all of a model for its device: not while timing
    for _ in range(rounds + 1):  # the first warms up
        times = []
        for module in modules:
            start = CLOCK()
            module(**inputs)
            settle(device)
            times.append(CLOCK() - start)
        taken.append(times)
    return [1000 * statistics.median(times) for times in zip(*taken[1:], strict=True)]


@torch.no_grad()
def own_times_ms(module: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any]) -> dict[str, float]:
    """Where the time of one call goes, in milliseconds, by path: `paths`, and `""` for the whole.

    What a module takes counts for it alone, and not for those of the others that it lies in; the sum is the call's.
    On a GPU the stream's own clock is read, so nothing waits before the end of the call.
    """
    device = module.device  # once: diffusers looks through all of a model for it
    running: list[tuple[str, Any]] = []
    taken: list[tuple[str, str | None, Any, Any]] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: running.append((path, _stamp(device)))

    def leave(*_: Any) -> None:
        path, start = running.pop()
        taken.append((path, running[-1][0] if running else None, start, _stamp(device)))

    with ExitStack() as stack:
        for path in {"", *paths}:
            part = module.get_submodule(path)
            stack.callback(part.register_forward_pre_hook(enter(path)).remove)
            stack.callback(part.register_forward_hook(leave).remove)
        module(**inputs)
    settle(device)
    times: dict[str, float] = defaultdict(float)
    for path, around, start, end in taken:
        spent = 1000 * (end - start) if isinstance(start, float) else start.elapsed_time(end)
        times[path] += spent
        if around is not None:
            times[around] -= spent
    return dict(times)


def _stamp(device: torch.device) -> Any:
    """This moment: of the program, in seconds, or of the GPU's stream."""
    if device.type != "cuda":
        return CLOCK()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def settle(device: torch.device) -> None:
    """Wait for what was asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What computes there: the GPU, or the processor and how many threads of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads of {os.cpu_count()}"


def processor() -> str:
    """The name of the machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
