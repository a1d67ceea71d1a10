"""Prompt encoders: frozen sentence encoders whose embeddings routers read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor


class PromptEncoder(ABC):
    """Texts to embeddings; a text's embedding does not depend on its batch (texts are padded to one fixed length)."""

    Options: ClassVar[type[BaseModel]]
    revision: str | None = None
    """The commit of the hub's repository that it came from, if it did; what its option `revision` is set to where it is
    loaded again."""

    @abstractmethod
    def __init__(self, options: BaseModel) -> None: ...

    def to(self, device: torch.device) -> Self:
        """The encoder itself, on `device` from now on; by default what a parent such as `nn.Module` does, if any."""
        parent = getattr(super(), "to", None)
        return parent(device) if parent else self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "batch embed"]:
        """Unit-length embeddings on the CPU, in float32. Over-long texts are truncated."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights and the settings that matter: the key of caches made with it."""
