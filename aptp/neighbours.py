"""The training prompts that a run keeps with its router: what prompts are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import faiss
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aptp.bundle import TRAINING, Bundle
from aptp.core.errors import RequestError, gist
from aptp.core.router import PromptBatch


@dataclass(frozen=True)
class Neighbours:
    """Training prompts with unit-length embeddings, to search among."""

    prompts: PromptBatch

    @classmethod
    def of(cls, bundle: Bundle) -> Neighbours | None:
        """Those of a bundle; None where it has none. Raises `RequestError` where they are damaged."""
        file = bundle.folder / "router" / TRAINING
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as kept:
                texts, embeds = json.loads(kept.metadata()["prompts"]), kept.get_tensor("embeds").float()
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError("its prompts are no texts.")
            if embeds.shape != (len(texts), bundle.embed) or not bool(embeds.isfinite().all()):
                raise ValueError(f"it has no embeddings of {len(texts)} prompts by {bundle.embed} finite numbers.")
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise RequestError(f"{str(file)!r} is damaged: {gist(error)}") from error
        return cls(PromptBatch(texts, torch.nn.functional.normalize(embeds, dim=-1)))

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def _index(self) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(self.prompts.embeds.shape[1])
        index.add(self.prompts.embeds.numpy())
        return index

    def nearest(
        self, embeds: Float[Tensor, "batch embed"], count: int
    ) -> tuple[Float[Tensor, "batch count"], Int[Tensor, "batch count"]]:
        """Cosine similarities, the largest first, and places of the `count` nearest prompts, or of all there are."""
        similarity, place = self._index.search(embeds.float().cpu().contiguous().numpy(), min(count, len(self)))
        return torch.from_numpy(similarity), torch.from_numpy(place)
