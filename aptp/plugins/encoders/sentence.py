"""Any sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core.encoder import PromptEncoder
from aptp.plugins.options import HubOptions

from .._hub import commit_of, find_folder
from ._sentences import FixedLengthSentences


class SentenceEncoder(PromptEncoder):
    """The encoder `sentence-transformers`: the model of a folder or hub name, with its own pooling.

    Raises:
        RequestError: if there is no such model, or if its weights are not safetensors.
    """

    Options = HubOptions

    def __init__(self, options: HubOptions) -> None:
        folder = find_folder("encoder", options.model, options.revision)
        self.revision = commit_of(folder)
        self._sentences = FixedLengthSentences(options.model, folder, options.max_tokens)

    def to(self, device: torch.device) -> Self:
        self._sentences.to(device)
        return self

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "batch embed"]:
        return self._sentences.encode(texts)

    def fingerprint(self) -> str:
        return self._sentences.fingerprint()
