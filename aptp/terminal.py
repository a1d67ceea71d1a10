"""What the command line draws: the progress of a run, and tables."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aptp.core.progress import Advance
from aptp.core.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

PIPED_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""


class Terminal:
    """`aptp.core.progress.Progress` for people: bars on a terminal, now and then a plain line elsewhere."""

    def __init__(self, console: Console | None = None, interval: float = 30.0) -> None:
        """Draw on `console`, by default standard error; plain lines come at least `interval` seconds apart."""
        self.console = console or Console(stderr=True)
        self.interval = interval
        self._bars: Progress | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Draw a piece of work; one within another is drawn under it and goes when it is done."""
        draw = self._bar if self.console.is_interactive else self._lines
        with draw(description, total) as advance:
            yield advance

    def say(self, text: str) -> None:
        """Print one line that stays, above the bars."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Advance]:
        if self._bars is not None:
            task = self._bars.add_task(description, total=total, note="")
            try:
                yield _advance_of(self._bars, task)
            finally:
                self._bars.remove_task(task)
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        ) as self._bars:
            try:
                yield _advance_of(self._bars, self._bars.add_task(description, total=total, note=""))
            finally:
                self._bars = None

    @contextmanager
    def _lines(self, description: str, total: int) -> Iterator[Advance]:
        started = last = time.monotonic()
        done, figures = 0, ""

        def line() -> str:
            elapsed = time.monotonic() - started
            parts = [f"{description}: {done}/{total}", f"{duration(elapsed)} elapsed"]
            if 0 < done < total:
                parts.append(f"{duration(elapsed / done * (total - done))} left")
            return ", ".join([*parts, figures] if figures else parts)

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, figures, last
            done, figures = done + count, note or figures
            if done < total and time.monotonic() - last >= self.interval:
                self.say(line())
                last = time.monotonic()

        try:
            yield advance
        finally:
            self.say(line())


def _advance_of(bars: Progress, task: Any) -> Advance:
    def advance(count: int = 1, note: str = "") -> None:
        if note:
            bars.update(task, note=note)
        bars.advance(task, count)

    return advance


def duration(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of plain values; numbers stand on the right, floats with three decimals."""
    drawn = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        drawn.add_row(*map(_cell, row))
    return drawn


def _cell(value: object) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.3f}", justify="right")
    return Text(printable(str(value)), justify="right" if isinstance(value, int) else "default", overflow="fold")


def show(*parts: Any) -> None:
    """Print tables and texts on standard output, wide enough to be read by programs where that is no terminal."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if fits else PIPED_WIDTH)
    for part in parts:
        part = printable(part) if isinstance(part, str) else part
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
