"""What training and evaluation read, computed once: latents, text states and prompt embeddings, cached by content."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import Module

from aptp.core.cache import Encoded, Table, key_of
from aptp.core.data import Sample
from aptp.core.denoiser import Denoiser
from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError, gist
from aptp.core.pictures import upright_rgb
from aptp.core.progress import Progress
from aptp.core.router import PromptBatch
from aptp.models import fingerprint, settings
from aptp.report.wording import plural

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHUNK = 64
"""Captions that are encoded at once; of pictures at most."""
CHUNK_PIXELS = 2**20
"""Of pictures that are encoded at once."""
LONGEST_CAPTION = 2000
"""Characters; what is longer is cut before it is encoded (encoders read far less)."""


@dataclass(frozen=True)
class Latents:
    """Samples that open, and the latents of their pictures: one row a distinct picture, and one of its mirror image."""

    samples: Sequence[Sample]
    rows: Table
    row_of: Int[Tensor, "samples"]
    mirrored: Table | None = None

    def of(
        self, index: Int[Tensor, "batch"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Latents of samples; where there are mirror images, a generator draws which samples show theirs."""
        row = self.row_of[index]
        latents = self.rows[row]["latents"]
        if self.mirrored is None or generator is None:
            return latents
        turned = torch.rand(len(index), generator=generator) < 0.5
        if turned.any():
            latents[turned] = self.mirrored[row[turned]]["latents"]
        return latents


@dataclass(frozen=True)
class Pictures:
    """One split, ready for training: latents, and captions with their text states and embeddings.

    Latents are stored once a distinct picture, text states and embeddings once a distinct caption; `caption_of` points
    from a sample to its own. Where a picture has several captions, the samples of an epoch are all of its pairs, in an
    order that the seed of the step settles. Latents and text states stay on disk until they are asked for.
    """

    latents: Latents
    captions: Sequence[str]
    caption_of: Int[Tensor, "samples"]
    text: Table
    embeds: Float[Tensor, "captions embed"]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def samples(self) -> Sequence[Sample]:
        """Those of the split whose pictures open."""
        return self.latents.samples

    def latents_of(
        self, index: Int[Tensor, "batch"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Latents of samples; in training, the step's generator draws which are mirrored, if any may be."""
        return self.latents.of(index, generator)

    def text_states(self, index: Int[Tensor, "batch"]) -> dict[str, Tensor]:
        """Text states of samples, float32."""
        return self.text[self.caption_of[index]]

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


@dataclass(frozen=True)
class Need:
    """What is yet to be encoded, the disk that it takes, and what is free there; in bytes."""

    pictures: int
    mirrored: int
    captions: int
    size: int
    free: int
    cache: Path

    def __str__(self) -> str:
        if not self.size:
            return f"all pictures and captions are encoded in {str(self.cache)!r}"
        mirrored = f", {plural(self.mirrored, 'mirror image')}" if self.mirrored else ""
        what = f"{plural(self.pictures, 'picture')}{mirrored} and {plural(self.captions, 'caption')}"
        return f"{what} are to be encoded, {_mb(self.size)} in {str(self.cache)!r}, where {_mb(self.free)} are free"

    def check(self) -> None:
        """Raise `RequestError` where it is more than is free."""
        if self.size > self.free:
            raise RequestError(
                f"{self}: make room, name another folder (prepare.cache), or use fewer pictures (prepare.train, "
                "prepare.validation)."
            )


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

    def need(
        self,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        source: str,
        *,
        flips: bool = False,
        new_text: bool = False,
    ) -> Need:
        """What preparing these splits of the data set whose fingerprint is `source` will encode.

        Args:
            flips: whether mirror images of the training pictures are needed too.
            new_text: whether the text encoders are trained first, so that no caption is encoded yet.
        """
        captions = sorted({sample.caption for sample in (*train, *validation)})
        text, embeds = self._text(captions, "text"), self._embeds(captions, "embeds")
        pictures = len(self._latents(_shown([*train, *validation]), source, "latents").missing)
        mirrored = len(self._latents(_shown(train), source, "latents", mirrored=True).missing) if flips else 0
        texts = len(captions) if new_text else len(text.missing)
        row = 4 * self.pipeline.vae.config.latent_channels * self.latent_size**2
        size = (pictures + mirrored) * row + texts * _bytes(self.text([""], "empty"))
        size += len(embeds.missing) * _bytes(self.embeds([""], "empty"))
        there = next(folder for folder in (self.cache, *self.cache.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        return Need(pictures, mirrored, max(texts, len(embeds.missing)), size, free, self.cache)

    def pictures(self, samples: Sequence[Sample], source: str, what: str, flips: bool = False) -> Pictures:
        """Encode a split of the data set whose fingerprint is `source`.

        Raises:
            RequestError: if no picture of it can be read.
        """
        latents = self.latents(samples, source, what, flips)
        captions = sorted({sample.caption for sample in latents.samples})
        place = {caption: i for i, caption in enumerate(captions)}
        caption_of = torch.tensor([place[sample.caption] for sample in latents.samples])
        return Pictures(latents, captions, caption_of, self.text(captions, what), self.embeds(captions, what))

    def latents(self, samples: Sequence[Sample], source: str, what: str, flips: bool = False) -> Latents:
        """The samples that open, and the latents of their pictures; with `flips`, of their mirror images too.

        Pictures that do not open are listed in `skipped`.

        Raises:
            RequestError: if none is left.
        """
        shown = _shown(samples)
        rows = self._latents(shown, source, f"encoding {what} pictures")
        mirrored = self._latents(shown, source, f"encoding mirrored {what} pictures", mirrored=True) if flips else None
        broken: dict[int, str] = {}
        for table in filter(None, (rows, mirrored)):
            table.fill()
            broken |= table.broken
        self.skipped |= {shown[place].picture_id: why for place, why in broken.items()}
        if len(broken) == len(shown):
            raise RequestError(
                f"none of the {len(shown)} {what} pictures can be read; the first: {next(iter(broken.values()))}."
            )
        row = {sample.picture_id: place for place, sample in enumerate(shown) if place not in broken}
        opened = [sample for sample in samples if sample.picture_id in row]
        return Latents(opened, rows, torch.tensor([row[sample.picture_id] for sample in opened]), mirrored)

    def text(self, captions: Sequence[str], what: str) -> Table:
        """Text states of captions, by the denoiser's argument names."""
        rows = self._text(captions, f"encoding {what} captions")
        rows.fill()
        return rows

    def embeds(self, captions: Sequence[str], what: str) -> Float[Tensor, "captions embed"]:
        """What the router reads of captions."""
        rows = self._embeds(captions, f"embedding {what} prompts")
        rows.fill()
        return rows.whole()["embeds"]

    def _latents(self, samples: Sequence[Sample], source: str, task: str, mirrored: bool = False) -> Table:
        """Latents of pictures. They are found by the pictures' content, or else by their names within `source`."""
        vae, size = self.pipeline.vae, self.latent_size * self.pipeline.vae_scale_factor
        scale = [vae.config.get(name) for name in ("scaling_factor", "shift_factor")]

        def encode(places: list[int]) -> Encoded:
            pictures, broken, barred = [], {}, {}
            for place in places:
                try:
                    picture = fit(samples[place], size)
                    pictures.append(ImageOps.mirror(picture) if mirrored else picture)
                except PermissionError as error:
                    barred[place] = str(error)
                except OSError as error:
                    broken[place] = str(error)
            if not pictures:
                return Encoded({}, broken, barred)
            pixels = self.pipeline.image_processor.preprocess(pictures).to(vae.device, vae.dtype)
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            latents = (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor
            return Encoded({"latents": latents}, broken, barred)

        return self._table(
            ("latents", self._vae_fingerprint, scale, self.latent_size),
            [key_of(sample.content or [source, sample.picture_id], mirrored) for sample in samples],
            encode,
            task,
            max(1, min(CHUNK, CHUNK_PIXELS // size**2)),
        )

    def _text(self, captions: Sequence[str], task: str) -> Table:
        """Families that share an encoder read it differently, by their pipeline's kind and the denoiser's config."""

        def encode(texts: list[str]) -> dict[str, Tensor]:
            return self.denoiser.encode_text(self.pipeline, texts, self.latent_size)

        reader = type(self.pipeline).__name__, settings(self._module)
        encoder = ("text", self._text_fingerprint, self.latent_size, *reader)
        return self._texts(encoder, captions, encode, task)

    def _embeds(self, captions: Sequence[str], task: str) -> Table:
        def encode(texts: list[str]) -> dict[str, Tensor]:
            return {"embeds": self.encoder.encode(texts)}

        return self._texts(("embeds", self._encoder_fingerprint), captions, encode, task)

    def _texts(
        self,
        encoder: tuple[object, ...],
        captions: Sequence[str],
        encode: Callable[[list[str]], dict[str, Tensor]],
        task: str,
    ) -> Table:
        def cut(places: list[int]) -> Encoded:
            return Encoded(encode([captions[place][:LONGEST_CAPTION] for place in places]), {})

        return self._table(encoder, [key_of(caption) for caption in captions], cut, task, CHUNK)

    def _table(
        self,
        encoder: tuple[object, ...],
        keys: Sequence[bytes],
        encode: Callable[[list[int]], Encoded],
        task: str,
        chunk: int,
    ) -> Table:
        """Rows in the folder of an encoder, which is a kind and all that what it makes depends on."""
        return Table(self.cache / f"{encoder[0]}-{key_of(*encoder).hex()}", keys, encode, chunk, task, self.progress)

    @functools.cached_property
    def _vae_fingerprint(self) -> str:
        return fingerprint(self.pipeline.vae)

    @functools.cached_property
    def _text_fingerprint(self) -> str:
        parts = [c for n, c in sorted(self.pipeline.components.items()) if n.startswith(("text_encoder", "tokenizer"))]
        weights = fingerprint(*(part for part in parts if isinstance(part, Module)))
        return key_of(weights, [settings(part) for part in parts]).hex()

    @functools.cached_property
    def _encoder_fingerprint(self) -> str:
        return self.encoder.fingerprint()


def fit(sample: Sample, size: int):
    """A sample's picture, cropped at the centre and scaled to `size` × `size`.

    Raises:
        OSError: if it does not open.
        PermissionError: if it may not be read.
        RuntimeError: if it cannot be read for another reason that is no fault of the picture: it is gone, or its disk
            is, too many files are open, the memory is full.
    """
    try:
        return ImageOps.fit(upright_rgb(sample.open()), (size, size), Image.Resampling.LANCZOS)
    except PermissionError as error:
        raise PermissionError(f"{sample.picture_id} may not be read: {error}") from error
    except (OSError, MemoryError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise RuntimeError(f"{sample.picture_id} cannot be read now: {gist(error)}") from error
        raise OSError(f"{sample.picture_id} does not open as a picture: {error}") from error


def _shown(samples: Sequence[Sample]) -> list[Sample]:
    """One sample of each picture."""
    return list({sample.picture_id: sample for sample in samples}.values())


def _bytes(rows: Table | Tensor) -> int:
    """Of the first row."""
    tensors = [rows] if isinstance(rows, Tensor) else rows.whole().values()
    return sum(tensor[0].nbytes for tensor in tensors)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
