"""The routed pipeline: many prompts in, grouped by expert, pictures out in the order asked."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from aptp.bundle import Bundle, check_experts, load_finished
from aptp.core.errors import RequestError, gist, unknown
from aptp.core.progress import Advance
from aptp.experts import Experts
from aptp.explain import Explanation, explain
from aptp.host import Host, default_host
from aptp.models import keep_in_float32, quietly
from aptp.monitor import Monitor
from aptp.publishing import find_bundle, push_bundle, write_bundle
from aptp.request import KINDS, Pictures, check_count, check_options, generators_of, pictures_of, repeated, whole
from aptp.routing import DENSE, Route, check_prompts, read, route

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from huggingface_hub import CommitInfo
    from PIL import Image

CHECKS = {"check_inputs", "retrieve_timesteps", "set_timesteps"}
"""Where diffusers refuses what it is asked for: the functions by name, of pipelines and of schedulers."""


@dataclass(frozen=True)
class RoutedOutput:
    """Pictures in the order asked; of each the expert that drew it (−1 is the dense model) and its fraction of dense.

    `images` is a list of PIL pictures, an array or a tensor, as `output_type` asks. `nsfw_content_detected` is what the
    base pipeline's safety checker said of each picture, None if it has none.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    experts: list[int]
    costs: list[float]
    nsfw_content_detected: list[bool] | None = None


class RoutedPipeline:
    """A diffusers pipeline whose denoiser is chosen prompt by prompt.

    Everything but the denoiser is shared by the experts; an expert is loaded when it is first needed (see `Experts` for
    `memory_limit`). Threads may share a pipeline: routing and drawing take one caller's batch at a time.
    """

    def __init__(self, run: Path, bundle: Bundle, base: DiffusionPipeline, *, memory_limit: int | None = None) -> None:
        self.run, self.bundle, self.base = run, bundle, base
        self.dense: nn.Module = getattr(base, bundle.component)
        self._experts = Experts(self.dense, bundle.expert, memory_limit)
        self._routing, self._drawing = threading.Lock(), threading.Lock()
        self.monitor: Monitor | None = None
        """Told of every route; none by default."""

    @property
    def device(self) -> torch.device:
        """Where pictures are drawn."""
        return self._experts.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the denoisers' weights."""
        return self._experts.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline to a device, cast it to a type, or both; arguments are those of `DiffusionPipeline.to`.

        Routing moves, but is not cast, so that prompts keep their experts. In float16 a text encoder keeps in float32
        what transformers does not load in it either.
        """
        with self._drawing, self._routing, quietly():
            self.base.to(*args, **kwargs)
            keep_in_float32(self.base)
            self._experts.to(self.base.device, self.dense.dtype)
            self.bundle.encoder.to(self.device)
        return self

    def expert(self, index: int) -> nn.Module:
        """An expert on the pipeline's device, or, for −1, the dense model. Raises `RequestError` for another.

        With a memory limit it may leave the device when others are needed; while it draws for the pipeline it stays.
        """
        self._check_experts([index])
        return self._experts[index]

    def route(self, prompts: str | Sequence[str], *, fallback_margin: float = 0.0) -> list[Route]:
        """The expert of each prompt, a function of that prompt alone.

        Args:
            fallback_margin: prompts whose lead is under it go to the dense model.

        Raises:
            RequestError: for no prompts, an empty one, or one of over 10,000 characters.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        with self._routing:
            batch = read(self.bundle, prompts)
            routes = route(self.bundle, batch, fallback_margin)
        if self.monitor:
            self.monitor.observe(routes, batch.embeds)
        return routes

    def explain(self, prompts: str | Sequence[str]) -> list[Explanation]:
        """The route of each prompt with the training prompts nearest to it and the words that decide.

        Raises:
            RequestError: as `route`.
        """
        with self._routing:
            return explain(self.bundle, [prompts] if isinstance(prompts, str) else list(prompts))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> RoutedPipeline:
        """The pipeline of a bundle: a folder, or the hub's `owner/name`, or `owner/name@revision`.

        Args:
            revision: of a hub name, another way to say it; a folder has none.
            torch_dtype: what diffusers calls the `dtype` of `aptp.load`.
            settings: as of `aptp.load`.

        Raises:
            RequestError: if it is not to be had, or does not fit its manifest.
        """
        folder = Path(name).expanduser().is_dir()
        bundle = find_bundle(f"{name}@{revision}" if revision and not folder else str(name))
        return load(bundle, **settings | ({"dtype": torch_dtype} if torch_dtype else {}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a bundle: all that serving needs, as it is on disk, with a manifest and a model card.

        Raises:
            RequestError: if the folder has something in it.
        """
        write_bundle(self.bundle, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Put a bundle into a repository of the hub, which is made if it is not there; one commit.

        Arguments and what comes back are those of huggingface_hub's `create_repo` and `upload_folder`.
        """
        return push_bundle(
            self.bundle, repo_id, commit_message=commit_message, private=private, token=token, create_pr=create_pr
        )

    def __call__(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        batch_size: int = 16,
        experts: int | Sequence[int] | None = None,
        dense: bool = False,
        fallback_margin: float = 0.0,
        advance: Advance | None = None,
        **options: Any,
    ) -> RoutedOutput:
        """Draw pictures, each by the expert of its prompt.

        A picture depends on its prompt, its noise and its expert, not on what else is in the call.

        Args:
            prompts: their texts. Beside `prompt_embeds` they are only routed by; there they may be left out if
                `experts` or `dense` is given.
            guidance_scale: of classifier-free guidance; the diffusers pipeline's own by default.
            negative_prompt: what pictures should not show, one for all or one a prompt; has no part in routing. By
                default the pipeline's own, which is not always the empty one.
            num_images_per_prompt: pictures of a prompt, next to one another in the answer.
            seed: of each picture's own noise, which is drawn on the CPU: one a prompt, from which its pictures count
                on, or a single one, from which all pictures of a prompt count on, its repetitions included.
            generator: instead of a seed: one a picture, or a single one. That serves a single picture as it is; for
                several it draws a seed for each, in the order asked, so that it is another one afterwards.
            output_type: `pil`, `np`, `pt` or `latent`.
            batch_size: pictures drawn at a time, all by one expert.
            experts: use these, one a prompt or one for all, instead of the router's; −1 is the dense model.
            dense: use the dense model for every prompt.
            fallback_margin: prompts that the router sends to an expert with less of a lead go to the dense model.
            advance: told how many pictures are done.
            options: of the diffusers pipeline. Tensors such as `prompt_embeds`, and texts such as `prompt_2`, come one
                a prompt, `latents` one a picture; `timesteps` and `sigmas` are the schedule of the whole call.
                `callback_on_step_end` is called in every step of every batch.

        Raises:
            RequestError: for prompts that cannot be served, options that the diffusers pipeline does not take or
                refuses, or another number of something than there are prompts or pictures.
        """
        num_inference_steps = whole("num_inference_steps", num_inference_steps, 1)
        num_images_per_prompt = whole("num_images_per_prompt", num_images_per_prompt, 1)
        batch_size = whole("batch_size", batch_size, 1)
        if output_type not in KINDS:
            raise unknown("output_type", str(output_type), KINDS)
        options |= {"num_inference_steps": num_inference_steps, "output_type": output_type}
        if guidance_scale is not None:
            options["guidance_scale"] = guidance_scale
        if negative_prompt is not None or "negative_prompt_embeds" in options:  # PixArt's own default is a text
            options["negative_prompt"] = negative_prompt
        check_options(self.base, options)
        embeds: Any = options.get("prompt_embeds")
        if prompts is None and (embeds is None or (experts is None and not dense)):
            raise RequestError("there is no prompt; give its text, or its prompt_embeds and an expert.")
        texts = [prompts] if isinstance(prompts, str) else None if prompts is None else list(prompts)
        if texts is not None:
            check_prompts(texts)
        named: Sequence[Hashable] = range(len(embeds)) if texts is None else texts
        if dense:
            chosen = [DENSE] * len(named)
        elif experts is not None:
            asked = [experts] * len(named) if isinstance(experts, int | Integral) else list(experts)
            chosen = [whole("experts", index, DENSE) for index in asked]
            check_count("experts", chosen, len(named))
            self._check_experts(chosen)
        else:
            chosen = [route.expert for route in self.route(texts or [], fallback_margin=fallback_margin)]
        pictures = pictures_of(
            texts,
            num_images_per_prompt,
            generators_of(seed, generator, named, num_images_per_prompt),
            self.bundle.call_options | options,
        )
        return self._draw(pictures, repeated(chosen, num_images_per_prompt), batch_size, advance)

    def _draw(self, pictures: Pictures, experts: list[int], batch_size: int, advance: Advance | None) -> RoutedOutput:
        """Draw in batches of one expert each, those that are on the device first."""
        images: list[Any] = [None] * len(experts)
        flags: list[Any] = [None] * len(experts)
        for expert in sorted(set(experts), key=lambda index: (not self._experts.is_ready(index), index)):
            members = [place for place, choice in enumerate(experts) if choice == expert]
            for start in range(0, len(members), batch_size):
                places = members[start : start + batch_size]
                with self._at_work(expert):
                    drawn = self.base(**pictures.arguments(places))
                said = getattr(drawn, "nsfw_content_detected", None) or [None] * len(places)
                for place, image, flag in zip(places, drawn.images, said, strict=True):
                    images[place], flags[place] = image, flag
                if advance:
                    advance(len(places))
        costs = [self._cost(expert) for expert in experts]
        return RoutedOutput(_joined(images), experts, costs, None if None in flags else [bool(flag) for flag in flags])

    @contextmanager
    def _at_work(self, expert: int) -> Iterator[None]:
        """The base pipeline with an expert as its denoiser, for one thread; what it refuses is a `RequestError`."""
        with self._drawing, self._experts.held(expert) as denoiser:
            before, vae = getattr(self.base, self.bundle.component), self.base.vae
            decoding = vae.dtype  # which a pipeline that decodes in float32 leaves behind where it runs out of memory
            setattr(self.base, self.bundle.component, denoiser)
            try:
                yield
            except ValueError as error:
                if any(frame.name in CHECKS for frame in traceback.extract_tb(error.__traceback__)):
                    raise RequestError(f"{type(self.base).__name__} refuses this: {gist(error)}") from error
                raise
            finally:
                setattr(self.base, self.bundle.component, before)
                if vae.dtype != decoding:
                    vae.to(decoding)

    def _check_experts(self, experts: Sequence[int]) -> None:
        there = len(self.bundle.fractions)
        for index in experts:
            if index != DENSE and not 0 <= index < there:
                raise RequestError(f"there is no expert {index}; this run has {there}, from 0; −1 is the dense model.")

    def _cost(self, expert: int) -> float:
        return 1.0 if expert == DENSE else self.bundle.fractions[expert]


def _joined(images: list[Any]) -> Any:
    """Pictures in the container that a diffusers pipeline answers with."""
    if isinstance(images[0], torch.Tensor):
        return torch.stack(images)
    return np.stack(images) if isinstance(images[0], np.ndarray) else images


def load(
    run: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    lazy: bool = True,
    memory_limit: int | None = None,
    host: Host | None = None,
) -> RoutedPipeline:
    """The routed pipeline of a finished run, or of a bundle.

    Args:
        device: as torch names it; `auto` is a GPU where there is one.
        dtype: of the weights and of what the base pipeline computes, float32 by default. Routing keeps its own.
        lazy: read each expert when it is first needed. Otherwise all are read now, so that what is damaged is refused
            now and the first picture of each expert takes no longer than the next.
        memory_limit: bytes of denoisers that may be on the device at once (see `aptp.experts.Experts`).

    Raises:
        RequestError: if the folder is neither, a file of the bundle is not what its manifest says, or the base model
            cannot be had.
    """
    from aptp.models import device_of, load_pipeline, pipeline_fingerprint

    run, place = Path(run), device_of(device)
    bundle = load_finished(run, host or default_host())
    if bundle.manifest is None:
        check_experts(run, len(bundle.fractions))
    base = load_pipeline(bundle.base, torch.device("cpu"))
    if not isinstance(getattr(base, bundle.component, None), nn.Module):
        raise RequestError(f"the router of {str(run)!r} is damaged: its model has no denoiser {bundle.component!r}.")
    if pipeline_fingerprint(base) != bundle.model_fingerprint:
        raise RequestError(f"model {bundle.base!r} is not what {str(run)!r} was pruned from: its weights have changed.")
    check_options(base, bundle.call_options)
    pipe = RoutedPipeline(run, bundle, base, memory_limit=memory_limit).to(place, dtype)
    for index in () if lazy else range(len(bundle.fractions)):
        pipe.expert(index)
    return pipe
