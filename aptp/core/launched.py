"""What a launcher of several processes tells each of them. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent is gone."""


def rank() -> int:
    """This process's place; 0 is the main one."""
    return int(os.environ.get("RANK") or 0)


def processes() -> int:
    """How many were launched together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def end_with_launcher() -> None:
    """Ask Linux to kill this process, if it is one of several, when its launcher is gone, however it went."""
    if processes() > 1 and sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
