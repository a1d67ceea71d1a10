"""Sentence-transformers folders, every text at one length: what `minilm` and `sentence-transformers` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor

from aptp.core.errors import RequestError
from aptp.core.manifest import check_weight_lists

from .._hub import digest, loading
from ._length import fixed_length

CHUNK = 32
RIGHT = "a sentence-transformers folder or hub name (with modules.json and safetensors weights)"


class FixedLengthSentences:
    """The model of a folder, every text padded or cut to `tokens`."""

    def __init__(self, name: str, folder: Path, max_tokens: int) -> None:
        if not (folder / "modules.json").is_file():
            raise RequestError(f"encoder {name!r} is no sentence-transformers model: give {RIGHT}.")
        if any(not path.with_name("model.safetensors").exists() for path in folder.rglob("pytorch_model.bin")):
            raise RequestError(f"encoder {name!r} holds pickled weights, which are not read: give {RIGHT}.")
        with loading("encoder", name, RIGHT):
            check_weight_lists(folder)
            self.model = SentenceTransformer(
                str(folder),
                local_files_only=True,
                device="cpu",
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        self.folder = folder
        self.tokens = fixed_length(max_tokens, self.model.max_seq_length or max_tokens)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "batch embed"]:
        """Unit-length embeddings on the CPU, in float32."""
        if not texts:
            return self.encode([""])[:0]
        padding = {"padding": "max_length", "max_length": self.tokens, "truncation": True}
        embeds = self.model.encode(
            list(texts),
            batch_size=CHUNK,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
            processing_kwargs={"text": padding},
        )
        return embeds.cpu().float().clone()

    def fingerprint(self) -> str:
        """A hash of the files and of the length."""
        return digest(self.folder, "sentence-transformers", self.tokens)
