"""Granularity: which parts of a denoiser get gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel

from aptp.core.anatomy import Anatomy
from aptp.core.architecture import GateSite


class Granularity(ABC):
    """Chooses gate sites from an anatomy."""

    Options: ClassVar[type[BaseModel]]
    align: int = 1
    """Widths are kept at multiples of so many channels (`SearchSpace.align`)."""

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    @abstractmethod
    def sites(self, anatomy: Anatomy) -> Sequence[GateSite]:
        """The gated parts, in the order of the anatomy."""
