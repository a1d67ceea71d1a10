"""The processes of a run: launched together (`accelerate launch`, `torchrun`), one device each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from aptp.config import RunConfig
from aptp.core import distributed, launched
from aptp.core.errors import RequestError
from aptp.models import device_of

PATIENCE = timedelta(days=1)
"""How long a process waits for another, as for the main one while that encodes the data. Of one that fails, launchers
end the others at once."""


def join(config: RunConfig) -> None:
    """Meet the processes that were launched with this one, if any, and take this one's device.

    Raises:
        RequestError: if the launcher was asked for another precision than the run.
    """
    from accelerate import PartialState

    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", config.precision):
        raise RequestError(
            f"the launcher asks for precision {asked!r}, but the run's is {config.precision!r}; set precision={asked} "
            "for the run, where it is bf16, or launch without --mixed_precision."
        )
    launched.end_with_launcher()
    PartialState(cpu=device_of(config.device).type == "cpu", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes; there are no more stages."""
    if distributed.processes() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


@contextmanager
def by_itself() -> Iterator[None]:
    """What one process does while others wait elsewhere: a torchmetrics metric that is made here asks them nothing.

    By default it would meet the others where it is computed, and wait for them in vain.
    """
    from torchmetrics import metric

    asks = metric.jit_distributed_available
    metric.jit_distributed_available = lambda: False
    try:
        yield
    finally:
        metric.jit_distributed_available = asks


def alone() -> str | None:
    """A warning, where a launcher told of a meeting place but started no other process."""
    if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ and distributed.processes() == 1:
        return (
            "accelerate launch was asked for several processes and started one, as it does without a GPU; to have them "
            "on the CPU, add --multi_gpu to it and --device cpu to aptp run."
        )
    return None


def check_shares(config: RunConfig) -> None:
    """Raises `RequestError` where a batch of the run has no equal shares for the processes."""
    for name in ("adapt", "search", "recover"):
        options, processes = getattr(config, name), distributed.processes()
        pairs = 2 if name == "recover" and config.recover.guidance else 1
        multiple = processes * options.accumulate * pairs
        if options.steps and options.batch % multiple:
            raise RequestError(
                f"{name}.batch {options.batch} has no equal shares for {processes} processes that accumulate "
                f"{options.accumulate}; choose a multiple of {multiple}."
            )
