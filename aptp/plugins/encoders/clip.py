"""The text tower of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, CLIPConfig, CLIPTextConfig, CLIPTextModelWithProjection

from aptp.core.encoder import PromptEncoder
from aptp.plugins.options import HubOptions

from .._hub import commit_of, digest, find_folder, load_complete, load_tokenizer, loading
from ._length import fixed_length

CHUNK = 64
RIGHT = "a CLIPModel or CLIPTextModelWithProjection (folder or hub name) with its tokenizer and safetensors weights"


class ClipTextEncoder(PromptEncoder):
    """The encoder `clip`: a text's pooled and projected embedding, which CLIP compares with pictures.

    Raises:
        RequestError: if there is no such model, or if it has no projection, as the text encoders of most pipelines.
    """

    Options = HubOptions

    def __init__(self, options: HubOptions) -> None:
        self.folder = find_folder("encoder", options.model, options.revision)
        self.revision = commit_of(self.folder)
        with loading("encoder", options.model, RIGHT):
            config: Any = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            text: Any
            if isinstance(config, CLIPConfig):
                text = config.text_config
                text.projection_dim = config.projection_dim
            elif isinstance(config, CLIPTextConfig):
                text = config
            else:
                raise ValueError(f"its model type is {config.model_type!r}")
            self.tokenizer = load_tokenizer(self.folder)
            self.model = load_complete(CLIPTextModelWithProjection, self.folder, config=text)
        self.tokens = fixed_length(options.max_tokens, text.max_position_embeddings)

    def to(self, device: torch.device) -> Self:
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "batch embed"]:
        embeds = [torch.empty(0, self.model.config.projection_dim)]
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenizer(
                list(texts[start : start + CHUNK]),
                padding="max_length",
                max_length=self.tokens,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            pooled = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds
            embeds.append(F.normalize(pooled, dim=-1).cpu())
        return torch.cat(embeds)

    def fingerprint(self) -> str:
        return digest(self.folder, "clip", self.tokens)
