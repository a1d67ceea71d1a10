"""CLIP embeddings of generated and real pictures and their prompts, computed once for all metrics of a run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

from aptp.core.metric import GenerationBatch

from .._hub import find_folder, load_complete, load_tokenizer, loading

CHUNK = 64
EMBEDDED = "evaluator"
RIGHT = f"the folder or hub name of a CLIPModel with its tokenizer and image processor, or {EMBEDDED!r}"


class Embedded:
    """The embeddings of one batch, each kind computed when it is first asked for."""

    def __init__(self, features: Features, batch: GenerationBatch) -> None:
        self._features, self._batch = features, batch

    @functools.cached_property
    def images(self) -> Float[Tensor, "batch embed"]:
        """Of the generated pictures."""
        return self._features.images(self._batch.images)

    @functools.cached_property
    def references(self) -> Float[Tensor, "batch embed"]:
        """Of the real pictures."""
        return self._features.images(self._batch.references)

    @functools.cached_property
    def prompts(self) -> Float[Tensor, "batch embed"]:
        """Of the prompts."""
        return self._features.texts(self._batch.prompts)


class Features:
    """A frozen CLIP model in float32; its embeddings have unit length and lie on the CPU.

    `label` is the last component of the model's name: figures carry it. The model follows the pictures' device.
    Pictures go through the model's own image processor, in its PIL form wherever this runs, so that figures do not
    depend on which other packages are installed.
    """

    def __init__(self, name: str) -> None:
        folder = Path(str(files("aptp"))) / "assets" / EMBEDDED if name == EMBEDDED else find_folder("features", name)
        self.label = Path(name).name
        with loading("features", name, RIGHT):
            self.model = load_complete(CLIPModel, folder)
            self.processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            self.tokenizer = load_tokenizer(folder)
        self._last: tuple[GenerationBatch, Embedded] | None = None

    def embed(self, batch: GenerationBatch) -> Embedded:
        """The embeddings of a batch; metrics that are given the same one in turn share them."""
        if self._last is None or self._last[0] is not batch:
            self._last = batch, Embedded(self, batch)
        return self._last[1]

    @torch.no_grad()
    def images(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Embeddings of pictures. Raises `ValueError` for pictures that are not 8-bit RGB."""
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"pictures are {images.dtype} {list(images.shape)}; give uint8 [batch, 3, height, width].")
        model, embeds = self.model.to(images.device), []
        for chunk in images.split(CHUNK):
            arrays = list(chunk.cpu().numpy())
            pixels = self.processor(arrays, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
            embeds.append(model.get_image_features(pixel_values=pixels.to(images.device)).pooler_output)
        return F.normalize(torch.cat(embeds), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch embed"]:
        """Embeddings of prompts, each cut to the model's longest text."""
        embeds = []
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenizer(
                list(texts[start : start + CHUNK]),
                padding="max_length",
                max_length=self.model.config.text_config.max_position_embeddings,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            embeds.append(output.pooler_output)
        return F.normalize(torch.cat(embeds), dim=-1).cpu()


@functools.cache
def load_features(name: str) -> Features:
    """The features called `name`, loaded once a process.

    Raises:
        RequestError: if there is no such CLIP model.
    """
    return Features(name)
