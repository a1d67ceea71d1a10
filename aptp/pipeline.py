"""The routed pipeline: many prompts in, grouped by expert, pictures out in the order asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aptp.bundle import Bundle, load_finished
from aptp.core.errors import RequestError
from aptp.core.progress import Advance
from aptp.host import Host, default_host
from aptp.publishing import find_bundle, push_bundle, write_bundle
from aptp.routing import Route, check_prompts, read, route

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from huggingface_hub import CommitInfo
    from PIL import Image


@dataclass(frozen=True)
class RoutedOutput:
    """Pictures in the order of the prompts, and the expert that drew each."""

    images: list[Image.Image]
    experts: list[int]


class RoutedPipeline:
    """A diffusers pipeline whose denoiser is chosen prompt by prompt.

    Everything but the denoiser is shared by the experts; an expert is loaded when it is first needed.
    """

    def __init__(self, run: Path, bundle: Bundle, base: DiffusionPipeline) -> None:
        self.run, self.bundle, self.base = run, bundle, base
        self.dense: nn.Module = getattr(base, bundle.component)
        self._experts: dict[int, nn.Module] = {}

    def expert(self, index: int) -> nn.Module:
        """An expert, loaded once, on the base pipeline's device."""
        if not 0 <= index < len(self.bundle.fractions):
            raise RequestError(f"there is no expert {index}; this run has {len(self.bundle.fractions)}, from 0.")
        if index not in self._experts:
            self._experts[index] = self.bundle.expert(index, self.dense.dtype).to(self.dense.device)
        return self._experts[index]

    def route(self, prompts: str | Sequence[str]) -> list[Route]:
        """The expert of each prompt, a function of that prompt alone.

        Raises:
            RequestError: for no prompts, an empty one, or one of over 10,000 characters.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        return route(self.bundle, read(self.bundle, prompts))

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> RoutedPipeline:
        """The pipeline of a bundle: a folder, or the hub's `owner/name`, or `owner/name@revision`.

        Args:
            settings: as of `aptp.load`.

        Raises:
            RequestError: if it is not to be had, or does not fit its manifest.
        """
        return load(find_bundle(str(name)), **settings)

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
        prompts: str | Sequence[str],
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 16,
        experts: Sequence[int] | None = None,
        dense: bool = False,
        advance: Advance | None = None,
        **options: Any,
    ) -> RoutedOutput:
        """Draw one picture a prompt.

        Args:
            negative_prompt: what pictures should not show, one for all or one a prompt; has no part in routing. By
                default the pipeline's own, which is not always the empty one.
            seed: of each picture's own noise: one a prompt, or a single one, from which the repetitions of a prompt
                count on. A picture depends on its prompt, its seed and its expert, not on what else is in the call.
            batch_size: pictures drawn at a time.
            experts: use these, one a prompt, instead of the router's.
            dense: use the dense model for every prompt.
            advance: told how many pictures are done.
            options: passed on to the diffusers pipeline.

        Raises:
            RequestError: for prompts that cannot be served, or other things that are not one a prompt.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        seeds = seeds_from(seed, prompts) if isinstance(seed, int) else list(seed)
        chosen = (
            [-1] * len(prompts)
            if dense
            else list(experts)
            if experts is not None
            else [r.expert for r in self.route(prompts)]
        )
        if not len(prompts) == len(seeds) == len(chosen):
            raise RequestError(
                f"{len(prompts)} prompts need as many seeds and experts, not {len(seeds)} and {len(chosen)}."
            )
        negative = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
        if negative is not None and len(negative) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts need as many negative prompts, or one, not {len(negative)}.")
        draw = partial(
            self.base,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **{"output_type": "pil"} | self.bundle.call_options | options,
        )
        images: list[Any] = [None] * len(prompts)
        try:
            for expert in sorted(set(chosen)):
                setattr(self.base, self.bundle.component, self.dense if expert < 0 else self.expert(expert))
                members = [place for place, choice in enumerate(chosen) if choice == expert]
                for start in range(0, len(members), batch_size):
                    batch = members[start : start + batch_size]
                    noise = [torch.Generator().manual_seed(seeds[place]) for place in batch]
                    avoid = {} if negative is None else {"negative_prompt": [negative[place] for place in batch]}
                    drawn = draw([prompts[place] for place in batch], generator=noise, **avoid).images
                    for place, image in zip(batch, drawn, strict=True):
                        images[place] = image
                    if advance:
                        advance(len(batch))
        finally:
            setattr(self.base, self.bundle.component, self.dense)
        return RoutedOutput(images, chosen)


def seeds_from(first: int, prompts: Sequence[str]) -> list[int]:
    """A seed a picture: `first`, plus how often its prompt came before."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        seeds.append(first + seen[prompt])
        seen[prompt] += 1
    return seeds


def load(run: str | Path, *, device: str = "auto", host: Host | None = None) -> RoutedPipeline:
    """The routed pipeline of a finished run, or of a bundle.

    Raises:
        RequestError: if the folder is neither, a file of the bundle is not what its manifest says, or the base model
            cannot be had.
    """
    from aptp.models import device_of, load_pipeline, pipeline_fingerprint

    run = Path(run)
    bundle = load_finished(run, host or default_host())
    base = load_pipeline(bundle.base, device_of(device))
    bundle.encoder.to(base.device)
    if pipeline_fingerprint(base) != bundle.model_fingerprint:
        raise RequestError(f"model {bundle.base!r} is not what {str(run)!r} was pruned from: its weights have changed.")
    return RoutedPipeline(run, bundle, base)
