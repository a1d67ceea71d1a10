"""How long work says what it is doing: the harness reports, the command line draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[..., None]
"""`advance(count=1, note="")`: so many more are done; `note` is a short text of current figures."""


class Progress(Protocol):
    """Where progress goes."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A piece of work with a known number of steps, e.g. `"search"`, 120."""

    def say(self, text: str) -> None:
        """One line that stays, e.g. a warning."""


class Quiet:
    """Progress that nobody watches."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Count nothing."""
        yield lambda count=1, note="": None

    def say(self, text: str) -> None:
        """Say nothing."""
