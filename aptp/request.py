"""What a call of the routed pipeline asks for, picture by picture."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Hashable, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aptp.core.errors import RequestError, unknown

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SEEDS = 2**63
"""Seeds are below it."""
KINDS = ("pil", "np", "pt", "latent")
"""Of output, as diffusers names them."""
OF_A_PROMPT = re.compile(r"(negative_)?(pooled_)?prompt(_\w+)?")
"""Names of the options of diffusers pipelines that come one a prompt."""
OF_THE_CALL = {"timesteps", "sigmas"}
"""Names of options that may be tensors and yet are one for all pictures: the schedule."""
OURS = {"prompt", "generator", "num_images_per_prompt", "return_dict", "callback", "callback_steps"}
"""Options of diffusers pipelines that the routed pipeline sets itself, or does without."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of a call in the order asked: all of the first prompt, then all of the second, and so on.

    `own` are the arguments of the diffusers pipeline that have an entry a picture, `shared` the others.
    """

    own: dict[str, Tensor | list[Any]]
    shared: dict[str, Any]

    def arguments(self, places: Sequence[int]) -> dict[str, Any]:
        """What the diffusers pipeline is called with to draw the pictures at `places` as one batch."""
        return self.shared | {
            name: values[list(places)] if isinstance(values, Tensor) else [values[place] for place in places]
            for name, values in self.own.items()
        }


def pictures_of(
    prompts: Sequence[str] | None,
    each: int,
    generators: list[torch.Generator],
    options: dict[str, Any],
) -> Pictures:
    """Take a call apart.

    Args:
        prompts: their texts; None where there are only embeddings.
        each: pictures a prompt.
        generators: one a picture.
        options: of the diffusers pipeline. Tensors and texts that come one a prompt are divided, and latents, which
            come one a picture. A single text is for all prompts, and so are `timesteps` and `sigmas`.

    Raises:
        RequestError: for an option that has another number of entries.
    """
    count = len(generators) // each
    own: dict[str, Tensor | list[Any]] = {"generator": generators}
    shared: dict[str, Any] = {}
    if prompts is not None and options.get("prompt_embeds") is None:
        options = {"prompt": list(prompts)} | options
    for name, value in options.items():
        of_a_prompt = OF_A_PROMPT.fullmatch(name)
        if value is None or name in OF_THE_CALL or not (isinstance(value, Tensor) or of_a_prompt):
            shared[name] = value
            continue
        values = [value] * count if isinstance(value, str) else value if isinstance(value, Tensor) else list(value)
        wanted, what = (count, "prompt") if of_a_prompt else (len(generators), "picture")
        check_count(name, values, wanted, what)
        own[name] = repeated(values, each) if of_a_prompt else values
    return Pictures(own, shared)


def whole(name: str, value: object, least: int) -> int:
    """A whole number, numpy's too, of at least `least`. Raises `RequestError` for anything else."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise RequestError(f"{name} is {value!r}; a whole number from {least} is right.")
    return int(value)


def check_count(name: str, values: Sized, wanted: int, what: str = "prompt") -> None:
    """Raise `RequestError` unless there are as many values as prompts, or as pictures."""
    if len(values) != wanted:
        raise RequestError(f"{name} has {len(values)} entries; one a {what} is right, {wanted} in all.")


def repeated(values: Any, times: int) -> Any:
    """A tensor with each row, or a list with each entry, so many times in a row."""
    if isinstance(values, Tensor):
        return values.repeat_interleave(times, 0)
    return [value for value in values for _ in range(times)]


def generators_of(
    seed: int | Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    prompts: Sequence[Hashable],
    each: int,
) -> list[torch.Generator]:
    """One source of noise a picture; `RoutedPipeline.__call__` says which.

    Raises:
        RequestError: for another number of them than asked for, or one that would serve two pictures.
    """
    pictures = len(prompts) * each
    if isinstance(generator, torch.Generator):
        if pictures == 1:
            return [generator]
        draw = torch.randint(SEEDS - 1, (pictures,), generator=generator, device=generator.device)
        return [_seeded(value) for value in draw.tolist()]
    if generator is not None:
        generators = list(generator)
        check_count("generator", generators, pictures, "picture")
        if len(set(map(id, generators))) != pictures:
            raise RequestError("a generator stands for two pictures; give each a generator of its own, or all one.")
        return generators
    if isinstance(seed, Integral):
        return [_seeded(value) for value in seeds_from(int(seed), repeated(prompts, each))]
    if not isinstance(seed, Sized):
        raise RequestError(f"seed is {seed!r}; a whole number, or one a prompt, is right.")
    check_count("seed", seed, len(prompts))
    return [_seeded(int(value) + place) for value in seed for place in range(each)]


def _seeded(seed: int) -> torch.Generator:
    if not 0 <= seed < SEEDS:
        raise RequestError(f"seed {seed} is out of range; from 0 to 2**63 - 1 is right.")
    return torch.Generator().manual_seed(seed)


def seeds_from(first: int, prompts: Sequence[Hashable]) -> list[int]:
    """A seed a picture: `first`, plus how often its prompt came before."""
    seen: Counter[Hashable] = Counter()
    seeds = []
    for prompt in prompts:
        seeds.append(first + seen[prompt])
        seen[prompt] += 1
    return seeds


def check_options(pipeline: DiffusionPipeline, options: dict[str, Any]) -> None:
    """Raise `RequestError` for an option that the diffusers pipeline does not take, or not from here."""
    parameters = inspect.signature(type(pipeline).__call__).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - OURS - {"self"}
    for name in options:
        if name == "prompt":
            raise RequestError("prompts are the first argument of a routed pipeline, or prompts=; it takes no prompt=.")
        if name not in known:
            raise unknown(f"option of a routed {type(pipeline).__name__}", name, known)
