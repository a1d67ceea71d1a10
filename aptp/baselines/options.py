"""The options of the static pruners; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aptp.core.options import Options


class BKSDMOptions(Options):
    """BK-SDM's fixed removal of blocks."""

    size: Literal["base", "small", "tiny"] = Field(
        "base",
        description="every second layer of a stage goes; small: the mid block too; tiny: the innermost stages too",
    )


class BlockInfluenceOptions(Options):
    """Depth by the similarity of a block's input and output."""

    batches: int = Field(4, gt=0, description="calibration batches, each as large as one of the search")


class DiffPruningOptions(Options):
    """Taylor over informative diffusion times."""

    times: int = Field(20, gt=0, description="diffusion times that are tried, evenly spaced")
    batches: int = Field(1, gt=0, description="calibration batches at each time, the same at all")
    threshold: float = Field(
        0.05, ge=0, le=1, description="times whose loss is under this share of the largest are left out"
    )


class LearnedOptions(Options):
    """One learned code takes the settings of the run's search."""


class MagnitudeOptions(Options):
    """Magnitude pruning."""

    norm: Literal["l1", "l2"] = Field("l1", description="of a unit's weights")


class OBSOptions(Options):
    """Second-order pruning with an update of the weights that stay."""

    batches: int = Field(4, gt=0, description="calibration batches, each as large as one of the search")
    damping: float = Field(
        0.01, gt=0, description="added to the Hessian's diagonal, as a share of its mean; more keeps weights nearer"
    )


class RandomOptions(Options):
    """Random pruning takes the run's seed."""


class TaylorOptions(Options):
    """First-order pruning."""

    batches: int = Field(8, gt=0, description="calibration batches, each as large as one of the search")


class UniformOptions(Options):
    """The same share of units everywhere."""

    criterion: Literal["magnitude", "taylor", "random"] = Field(
        "magnitude", description="which units of a site stay: those with the largest score"
    )
    batches: int = Field(8, gt=0, description="calibration batches of the criterion taylor")
