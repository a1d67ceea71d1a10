"""The processes of a run, and the global batch that they hold together. One process is given back what it gives.

All processes carry out the same stages in the same order: a function here that waits is called by each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aptp.core.errors import RequestError, gist

T = TypeVar("T")


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's place among them."""
    return dist.get_rank() if processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes files, counts progress and speaks."""
    return rank() == 0


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks, with the gradient of every process's own rows.

    All processes hold the same number of rows. (accelerate's function of this name carries no gradient.)
    """
    if processes() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))


def own(rows: Tensor) -> Tensor:
    """This process's share of gathered rows."""
    if processes() == 1:
        return rows
    return rows.chunk(processes())[rank()]


def mean(value: Tensor) -> Tensor:
    """The mean over processes of a value that has no gradient, the same bits on all."""
    if processes() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / processes()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of all their gradients: that of the global batch, where each has its own rows'.

    A loss of gathered rows is whole on each process, and its gradient too large by their number: the mean is right.
    """
    if processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    for gradient in gradients:
        gradient /= processes()


def agree(module: nn.Module) -> None:
    """Give every process the main one's parameters and buffers."""
    if processes() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def shared(value: T) -> T:
    """The main process's value, on all; it is sent as a pickle."""
    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def on_main(work: Callable[[], T]) -> T:
    """Do it on the main process alone: all get what it returns, and all fail if it fails."""
    value: Any = None
    failure: Exception | None = None
    if is_main():
        try:
            value = work()
        except RequestError as error:
            shared((None, error))
            raise
        except Exception as error:
            shared((None, RuntimeError(f"the main process failed: {type(error).__name__}: {gist(error)}")))
            raise
    value, failure = shared((value, failure))
    if failure is not None:
        raise failure
    return value


def wait() -> None:
    """Until all processes are here."""
    if processes() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the body before the others, who may read what it wrote."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()
