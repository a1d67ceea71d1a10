"""What training and evaluation read, computed once: latents, text states and prompt embeddings, cached by content."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module

from aptp.core.data import Sample
from aptp.core.denoiser import Denoiser
from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError
from aptp.core.files import replacing
from aptp.core.progress import Progress
from aptp.core.router import PromptBatch
from aptp.models import fingerprint

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHUNK = 64
LONGEST_CAPTION = 2000
"""Characters; what is longer is cut before it is encoded (encoders read far less)."""


@dataclass(frozen=True)
class Pictures:
    """One split, ready for training: latents, and captions with their text states and embeddings.

    Latents are stored once a distinct picture, text states and embeddings once a distinct caption; `picture_of` and
    `caption_of` point from a sample to its own. Where a picture has several captions, the samples of an epoch are all
    of its pairs, in an order that the seed of the step settles.
    """

    samples: Sequence[Sample]
    latents: Float[Tensor, "pictures channels height width"]
    picture_of: Int[Tensor, "samples"]
    captions: Sequence[str]
    caption_of: Int[Tensor, "samples"]
    text: dict[str, Tensor]
    embeds: Float[Tensor, "captions embed"]

    def __len__(self) -> int:
        return len(self.samples)

    def latents_of(self, index: Int[Tensor, "batch"]) -> Float[Tensor, "batch channels height width"]:
        """Latents of samples."""
        return self.latents[self.picture_of[index]]

    def text_states(self, index: Int[Tensor, "batch"]) -> dict[str, Tensor]:
        """Text states of samples, float32."""
        return {name: states[self.caption_of[index]].float() for name, states in self.text.items()}

    def prompts(self, index: Int[Tensor, "batch"] | None = None) -> PromptBatch:
        """Samples as a router sees them; all of them by default."""
        index = torch.arange(len(self)) if index is None else index.cpu()
        caption = self.caption_of[index]
        return PromptBatch(
            [self.captions[i] for i in caption], self.embeds[caption], [self.samples[i].id for i in index]
        )

    @property
    def kinds(self) -> list[str | None]:
        return [sample.kind for sample in self.samples]


class Preparer:
    """Encodes samples with a dense pipeline and a prompt encoder, or reads what an earlier run encoded."""

    def __init__(
        self, pipeline: DiffusionPipeline, denoiser: Denoiser, encoder: PromptEncoder, cache: Path, progress: Progress
    ) -> None:
        self.pipeline, self.denoiser, self.encoder = pipeline, denoiser, encoder
        self.cache, self.progress = cache, progress
        self.skipped: dict[str, str] = {}

    @property
    def latent_size(self) -> int:
        """Height and width of the latents, the denoiser's own."""
        return self.denoiser.sample_size(self._module)

    @property
    def _module(self) -> Module:
        return getattr(self.pipeline, self.denoiser.component)

    def pictures(self, samples: Sequence[Sample], source: str, what: str) -> Pictures:
        """Encode a split of the data set whose fingerprint is `source`.

        Raises:
            RequestError: if no picture of it can be read.
        """
        samples, latents, picture_of = self.latents(samples, source, what)
        captions = sorted({sample.caption for sample in samples})
        place = {caption: i for i, caption in enumerate(captions)}
        return Pictures(
            samples,
            latents,
            picture_of,
            captions,
            torch.tensor([place[sample.caption] for sample in samples]),
            self.text(captions, what),
            self.embeds(captions, what),
        )

    def latents(self, samples: Sequence[Sample], source: str, what: str) -> tuple[list[Sample], Tensor, Tensor]:
        """The samples that open, the latents of their pictures, and the place of each sample's picture among these.

        Pictures that do not open are listed in `skipped`.

        Raises:
            RequestError: if none is left.
        """
        shown = {sample.picture_id: sample for sample in samples}
        ids = list(shown)
        scale = [self.pipeline.vae.config.get(name) for name in ("scaling_factor", "shift_factor")]
        key = _key("latents", source, ids, fingerprint(self.pipeline.vae), scale, self.latent_size)
        cached = self._cached(key, lambda: self._encode_latents(list(shown.values()), f"encoding {what} pictures"))
        skipped = json.loads(bytes(cached["skipped"].tolist()) or b"{}")
        self.skipped |= skipped
        if len(skipped) == len(ids):
            raise RequestError(
                f"none of the {len(ids)} {what} pictures can be read; the first: {next(iter(skipped.values()))}."
            )
        place = {name: i for i, name in enumerate(name for name in ids if name not in skipped)}
        opened = [sample for sample in samples if sample.picture_id in place]
        picture_of = torch.tensor([place[sample.picture_id] for sample in opened])
        return opened, cached["latents"].float(), picture_of

    def text(self, captions: Sequence[str], what: str) -> dict[str, Tensor]:
        """Text states of captions, by the denoiser's argument names.

        Families that share an encoder read it differently, by their pipeline's kind and the denoiser's config.
        """
        encoders = [
            c for n, c in sorted(self.pipeline.components.items()) if n.startswith("text_encoder") and c is not None
        ]
        config = {name: str(value) for name, value in self._module.config.items() if not name.startswith("_")}
        key = _key("text", captions, fingerprint(*encoders), self.latent_size, type(self.pipeline).__name__, config)

        def encode(chunk: Sequence[str]) -> dict[str, Tensor]:
            return self.denoiser.encode_text(
                self.pipeline, [text[:LONGEST_CAPTION] for text in chunk], self.latent_size
            )

        return self._cached(key, lambda: self._in_chunks(captions, encode, f"encoding {what} captions"))

    def embeds(self, captions: Sequence[str], what: str) -> Float[Tensor, "captions embed"]:
        """What the router reads of captions."""
        key = _key("embeds", captions, self._encoder_fingerprint)

        def encode(chunk: Sequence[str]) -> dict[str, Tensor]:
            return {"embeds": self.encoder.encode([text[:LONGEST_CAPTION] for text in chunk])}

        return self._cached(key, lambda: self._in_chunks(captions, encode, f"embedding {what} prompts"))["embeds"]

    @functools.cached_property
    def _encoder_fingerprint(self) -> str:
        return self.encoder.fingerprint()

    def _encode_latents(self, samples: Sequence[Sample], task: str) -> dict[str, Tensor]:
        vae, skipped = self.pipeline.vae, {}
        size = self.latent_size * self.pipeline.vae_scale_factor

        def encode(chunk: Sequence[Sample]) -> dict[str, Tensor]:
            pictures = []
            for sample in chunk:
                try:
                    pictures.append(fit(sample, size))
                except OSError as error:
                    skipped[sample.picture_id] = str(error)
            if not pictures:
                return {}
            pixels = self.pipeline.image_processor.preprocess(pictures).to(vae.device, vae.dtype)
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            return {"latents": (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor}

        latents = self._in_chunks(samples, encode, task) or {"latents": torch.empty(0)}
        return latents | {"skipped": torch.tensor(list(json.dumps(skipped).encode()), dtype=torch.uint8)}

    @torch.no_grad()
    def _in_chunks(
        self, items: Sequence, encode: Callable[[Sequence], dict[str, Tensor]], task: str
    ) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        with self.progress.task(task, len(items)) as advance:
            for start in range(0, len(items), CHUNK):
                chunk = items[start : start + CHUNK]
                if encoded := encode(chunk):
                    parts.append({name: value.float().cpu() for name, value in encoded.items()})
                advance(len(chunk))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _cached(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.cache / f"{key}.safetensors"
        if not path.is_file():
            tensors = make()
            with replacing(path) as temporary:
                save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        try:
            return load_file(path)
        except SafetensorError:  # a damaged file is made anew
            path.unlink()
            return self._cached(key, make)


def fit(sample: Sample, size: int):
    """A sample's picture, cropped at the centre and scaled to `size` × `size`; raises `OSError` if it does not open."""
    from PIL import Image, ImageOps

    from aptp.core.pictures import upright_rgb

    try:
        return ImageOps.fit(upright_rgb(sample.open()), (size, size), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{sample.picture_id} does not open as a picture: {error}") from error


def _key(kind: str, *parts: object) -> str:
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]}"
