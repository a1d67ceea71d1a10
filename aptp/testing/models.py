"""Tiny random denoisers in the shapes of the families."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from aptp.core.architecture import SearchSpace
from aptp.core.budget import CostModel
from aptp.plugins.budgets.macs import MacsBudget
from aptp.plugins.denoisers.unet import UNetDenoiser
from aptp.plugins.granularities.width_depth import WidthDepth

Family = Literal["sd1", "sd2", "sdxl"]
FAMILIES: dict[str, dict[str, Any]] = {
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
"""What sets each family's tiny model apart (in a diffusers config `attention_head_dim` is the number of heads)."""


def tiny_unet(family: Family = "sd2", seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """A stock U-Net of about a quarter of a million random parameters in the shape of a family.

    Args:
        config: entries that replace those of the family.

    Norms and biases are random too: at their usual start they would hide a mask on the wrong side of a norm.
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**{**basis, **FAMILIES[family], **config})
        with torch.no_grad():
            for parameter in unet.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return unet.eval().requires_grad_(False)


def tiny_inputs(
    unet: nn.Module,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    sample_size: int = 8,
    text_tokens: int = 5,
) -> dict[str, Any]:
    """Random keyword arguments for a call of a tiny U-Net; every row has a time step of its own."""
    generator = torch.Generator().manual_seed(seed)
    inputs = UNetDenoiser().example_inputs(unet, sample_size, text_tokens)

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(inner) for name, inner in value.items()}
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(1, 999, shape, generator=generator)

    return fill(inputs)


def tiny_space(unet: nn.Module) -> SearchSpace:
    """APTP's own space, with every block a depth site."""
    return SearchSpace(tuple(WidthDepth(WidthDepth.Options(blocks="all")).sites(UNetDenoiser().anatomy(unet))))


def tiny_cost_model(unet: nn.Module, space: SearchSpace) -> CostModel:
    """Multiply-accumulates of a tiny U-Net on 8×8 latents."""
    return MacsBudget(MacsBudget.Options()).profile(UNetDenoiser(), unet, space, tiny_inputs(unet))
