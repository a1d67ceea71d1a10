"""The functions for people who hold a model: its search space and its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from aptp.core.architecture import SearchSpace
from aptp.core.budget import CostModel
from aptp.core.denoiser import Denoiser
from aptp.core.errors import RequestError
from aptp.host import Host, default_host

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def denoiser_of(module: nn.Module, host: Host | None = None) -> Denoiser:
    """The family of a diffusers model. Raises `RequestError` if no plugin knows it."""
    host = host or default_host()
    for name in host.specs("denoiser"):
        family = host.target("denoiser", name)
        if family.supports(module):
            return family()
    raise RequestError(f"no denoiser family knows {type(module).__name__}; known: {', '.join(host.specs('denoiser'))}.")


def pipeline_denoiser(pipeline: DiffusionPipeline, host: Host | None = None) -> Denoiser:
    """The family of a pipeline's denoiser.

    Raises:
        RequestError: if no plugin knows it, or the pipeline lacks something that the family cannot do without.
    """
    host = host or default_host()
    components = {host.target("denoiser", name).component for name in host.specs("denoiser")}
    modules = [module for name in sorted(components) if (module := getattr(pipeline, name, None)) is not None]
    if not modules:
        raise RequestError(
            f"a {type(pipeline).__name__} has no denoiser that could be pruned; a {' or a '.join(sorted(components))} "
            "is right."
        )
    family = denoiser_of(modules[0], host)
    for part in family.required(pipeline):
        if getattr(pipeline, part, None) is None:
            raise RequestError(
                f"this {type(pipeline).__name__} has no {part}; a whole text-to-image pipeline is right."
            )
    return family


def search_space(
    module: nn.Module, granularity: str = "width-depth", *, host: Host | None = None, **options: Any
) -> SearchSpace:
    """The sites of `module` that a granularity gates.

    Args:
        module: a stock diffusers denoiser.
        granularity: name of a registered granularity; `options` are its options.
    """
    host = host or default_host()
    chosen = host.create("granularity", granularity, options)
    return SearchSpace(tuple(chosen.sites(denoiser_of(module, host).anatomy(module))), chosen.align)


def cost_model(
    module: nn.Module,
    space: SearchSpace,
    budget: str = "macs",
    *,
    sample_size: int | None = None,
    text_tokens: int = 77,
    host: Host | None = None,
    **options: Any,
) -> CostModel:
    """What architectures of `space` cost.

    Args:
        module: the dense denoiser the space was made for.
        budget: name of a registered budget estimator; `options` are its options.
        sample_size: height and width of the latents; the model's own by default.
        text_tokens: length of the encoded prompt.
    """
    host = host or default_host()
    family = denoiser_of(module, host)
    inputs = family.example_inputs(module, sample_size or family.sample_size(module), text_tokens)
    return host.create("budget", budget, options).profile(family, module, space, inputs)
