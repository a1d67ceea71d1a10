"""Programs in processes of their own, here or wherever else something starts them; imports no torch.

On Linux a program ends with the process that started it, however that went.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from aptp.core.launched import PR_SET_PDEATHSIG

REFUSED = 2
"""Exit status of a wrong request."""
FULL = 2**16
"""Bytes free, under which a disk takes no word more."""


class Task(Protocol):
    """A program that was asked for."""

    def began(self) -> bool:
        """Whether it is under way, and does not wait for a place."""

    def poll(self) -> int | None:
        """Its exit status, minus the signal that killed it, or `None` before its end."""

    def kill(self) -> None:
        """End it and all that it started."""


Start = Callable[[Sequence[str], Path], Task]
"""Has Python started with some arguments, its output going into a file."""


class Child:
    """A program on this machine."""

    def __init__(
        self,
        arguments: Sequence[str],
        output: IO[bytes],
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        held: Sequence[int] = (),
    ) -> None:
        """Start Python in `folder`; it keeps the descriptors `held` open, and the locks that hang on them."""
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            pass_fds=held,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )

    def began(self) -> bool:
        return True

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        """Its exit status, at its end."""
        return self._process.wait()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def reason(who: str, status: int, log: Path) -> str:
    """Why a program failed, in a sentence: what it said last, or how `who` ended."""
    if status < 0:
        return f"{who} was killed by {signal.Signals(-status).name}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.removeprefix("aptp: ") for line in reversed(lines) if line.startswith("aptp: ")), None)
    full = shutil.disk_usage(log.parent).free < FULL
    return (
        said or f"{who} ended with exit status {status}; {'no space is left on the disk of' if full else 'see'} {log}"
    )


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does before it becomes a program: asks Linux to kill it when this process is gone."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask
