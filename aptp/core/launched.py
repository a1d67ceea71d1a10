"""What a launcher of several processes tells each of them. Imports no torch."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's place; 0 is the main one."""
    return int(os.environ.get("RANK") or 0)


def processes() -> int:
    """How many were launched together."""
    return int(os.environ.get("WORLD_SIZE") or 1)
