"""The functions for people who hold a model: its search space and its cost."""

from __future__ import annotations

from typing import Any

from torch import nn

from aptp.core.architecture import SearchSpace
from aptp.core.budget import CostModel
from aptp.core.denoiser import Denoiser
from aptp.core.errors import RequestError
from aptp.host import Host, default_host


def denoiser_of(module: nn.Module, host: Host | None = None) -> Denoiser:
    """The family of a diffusers model. Raises `RequestError` if no plugin knows it."""
    host = host or default_host()
    for name in host.specs("denoiser"):
        family = host.target("denoiser", name)
        if family.supports(module):
            return family()
    raise RequestError(f"no denoiser family knows {type(module).__name__}; known: {', '.join(host.specs('denoiser'))}.")


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
    return SearchSpace(tuple(chosen.sites(denoiser_of(module, host).anatomy(module))))


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
    inputs = family.example_inputs(module, sample_size or module.config.sample_size, text_tokens)
    return host.create("budget", budget, options).profile(family, module, space, inputs)
