"""POT (`ot`) for torch and numpy alone.

POT makes ready every array library that it finds installed, and JAX, as it starts, takes three quarters of a GPU's
memory.
"""

from __future__ import annotations

import os

for _library in ("JAX", "CUPY", "TENSORFLOW"):
    os.environ.setdefault(f"POT_BACKEND_DISABLE_{_library}", "1")

import ot  # noqa: E402

__all__ = ["ot"]
