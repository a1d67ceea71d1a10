"""Metrics of generated pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int, UInt8
from pydantic import BaseModel
from torch import Tensor


@dataclass(frozen=True)
class GenerationBatch:
    """Generated pictures, their prompts, other pictures of the same prompts, and who made them.

    References are real pictures or, to see how far a pruned model's have moved, the dense model's. Pictures lie on the
    run's device, so that features are taken there.
    """

    images: UInt8[Tensor, "batch 3 height width"]
    prompts: Sequence[str]
    references: UInt8[Tensor, "batch 3 height width"]
    experts: Int[Tensor, "batch"]


class Metric(ABC):
    """Accumulates batches of generated pictures and answers with named figures."""

    Options: ClassVar[type[BaseModel]]

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    @abstractmethod
    def update(self, batch: GenerationBatch) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Figures by name, among them, for a distance, its real-against-real floor at the same count. Names say which
        features were used."""
