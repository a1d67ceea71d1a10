"""The options of the static pruners; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aptp.core.options import Options


class MagnitudeOptions(Options):
    """Magnitude pruning."""

    norm: Literal["l1", "l2"] = Field("l1", description="of a unit's weights")


class RandomOptions(Options):
    """Random pruning takes the run's seed."""
