"""Tiny random denoisers in the shapes of the families."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from aptp.api import denoiser_of, search_space
from aptp.core.architecture import SearchSpace
from aptp.core.budget import CostModel
from aptp.plugins.budgets.macs import MacsBudget

Family = Literal["sd1", "sd2", "sdxl"]
FAMILIES: dict[Family, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 4, "use_linear_projection": False},
    "sd2": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    },
}
"""What sets the tiny U-Nets apart (in their diffusers config `attention_head_dim` is the number of heads)."""

PIXART: dict[str, dict[str, Any]] = {
    "pixart-alpha": {"use_additional_conditions": True},
    "pixart-sigma": {"use_additional_conditions": False},
}
"""What sets the tiny PixArt transformers apart."""

SD3: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
"""What sets the tiny transformers of Stable Diffusion 3 apart (3.5's medium: the image attends to itself once more)."""


def tiny_unet(family: Family = "sd2", seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """A stock U-Net of about a quarter of a million random parameters in the shape of a family.

    Args:
        config: entries that replace those of the family.
    """
    basis = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
    }
    return _random(UNet2DConditionModel, seed, {**basis, **FAMILIES[family], **config})


def tiny_pixart(family: str = "pixart-alpha", seed: int = 0, **config: Any) -> PixArtTransformer2DModel:
    """A stock PixArt transformer of about fifty thousand random parameters, with a learned variance as its models have.

    Args:
        config: entries that replace those of the family.
    """
    basis = {
        "sample_size": 8,
        "num_attention_heads": 4,
        "attention_head_dim": 6,
        "num_layers": 3,
        "cross_attention_dim": 24,
        "caption_channels": 12,
    }
    return _random(PixArtTransformer2DModel, seed, {**basis, **PIXART[family], **config})


def tiny_sd3(family: str = "sd3", seed: int = 0, **config: Any) -> SD3Transformer2DModel:
    """A stock transformer of about fifty thousand random parameters in the shape of Stable Diffusion 3 or 3.5.

    Args:
        config: entries that replace those of the family.
    """
    basis = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 6,
        "joint_attention_dim": 12,
        "caption_projection_dim": 24,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
    }
    return _random(SD3Transformer2DModel, seed, {**basis, **SD3[family], **config})


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{family: partial(tiny_unet, family) for family in FAMILIES},
    **{family: partial(tiny_pixart, family) for family in PIXART},
    **{family: partial(tiny_sd3, family) for family in SD3},
}
"""A tiny model of every shape that a built-in family knows; each takes a `seed` and entries of its config."""


def _random(kind: Any, seed: int, config: dict[str, Any]) -> Any:
    """A model of a diffusers class. Norms and biases are random too.

    At their usual start they would hide a mask on the wrong side of a norm.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(**config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def tiny_inputs(
    model: nn.Module,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    sample_size: int = 8,
    text_tokens: int = 5,
) -> dict[str, Any]:
    """Random keyword arguments for a call of a tiny model; every row has a time step, and a mask if any, of its own."""
    generator = torch.Generator().manual_seed(seed)
    inputs = denoiser_of(model).example_inputs(model, sample_size, text_tokens)

    def fill(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(name, inner) for name, inner in value.items()}
        shape = (batch, *value.shape[1:])
        if name.endswith("mask"):  # texts of some length, padded
            lengths = torch.randint(1, shape[1] + 1, (batch, 1), generator=generator)
            return (torch.arange(shape[1]) < lengths).to(dtype)
        if value.is_floating_point():
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(1, 999, shape, generator=generator)

    return fill("", inputs)


def tiny_space(model: nn.Module, align: int = 1) -> SearchSpace:
    """APTP's own space, with every block a depth site, its widths at multiples of so many channels."""
    return search_space(model, "width-depth", blocks="all", align=align)


def tiny_cost_model(model: nn.Module, space: SearchSpace) -> CostModel:
    """Multiply-accumulates of a tiny model on 8×8 latents, counted once for all models that are built alike."""
    key = str(model), str(model.config), str(space.to_dict())
    if key not in _COSTS:
        _COSTS[key] = MacsBudget(MacsBudget.Options()).profile(denoiser_of(model), model, space, tiny_inputs(model))
    return _COSTS[key]


_COSTS: dict[tuple[str, str, str], CostModel] = {}
