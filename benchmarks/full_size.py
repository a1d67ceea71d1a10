"""What published models cost, by kind of layer, and what 0.66 keeps of them; on the meta device, without weights.

    python benchmarks/full_size.py

Configurations are those of the models' published `config.json`; every count is torch's own (flops over two).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import aptp
from aptp.api import denoiser_of
from aptp.core.pruner import PrunerContext
from aptp.host import default_host

TARGET = 0.66
KINDS = {
    "ResnetBlock2D": "ResNet",
    "attn1": "self-attention",
    "attn2": "cross-attention",
    "FeedForward": "feed-forward",
}
"""Kinds of layer by the class or the name of a module; what is in none of them is the rest."""
PIXART = {"num_layers": 28, "caption_channels": 4096, "cross_attention_dim": 1152}
UNIT_KINDS = {
    "resnet_channels": "channel groups",
    "attention_heads": "heads",
    "feedforward_units": "feed-forward bundles",
    "block": "blocks",
}


@dataclass(frozen=True)
class Published:
    """A model as it is published: its class, its configuration, and the length of its text."""

    kind: type[nn.Module]
    tokens: int
    config: dict[str, Any]

    def build(self, device: str = "meta") -> Any:
        with torch.device(device):
            return self.kind(**self.config).eval().requires_grad_(False)


MODELS = {
    "SD 1.5": Published(
        UNet2DConditionModel,
        77,
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
    ),
    "SD 2.1": Published(
        UNet2DConditionModel,
        77,
        {
            "sample_size": 96,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
    ),
    "SDXL": Published(
        UNet2DConditionModel,
        77,
        {
            "sample_size": 128,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "PixArt-α 512": Published(
        PixArtTransformer2DModel, 120, {**PIXART, "sample_size": 64, "use_additional_conditions": False}
    ),
    "PixArt-α 1024": Published(
        PixArtTransformer2DModel, 120, {**PIXART, "sample_size": 128, "use_additional_conditions": True}
    ),
    "PixArt-Σ 1024": Published(
        PixArtTransformer2DModel, 300, {**PIXART, "sample_size": 128, "use_additional_conditions": False}
    ),
}


def gmacs_by_kind(model: nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
    """10⁹ multiply-accumulates of one call, of the whole and of each kind of layer, by torch's counter."""
    kinds = {
        path: KINDS.get(type(module).__name__) or KINDS.get(path.rsplit(".", 1)[-1])
        for path, module in model.named_modules()
    }
    found: dict[str, float] = defaultdict(float)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    root = type(model).__name__
    for path, counts in counter.get_flop_counts().items():
        if kind := kinds.get(path.removeprefix(f"{root}.")):
            found[kind] += sum(counts.values()) / 2e9
    found["whole"] = counter.get_total_flops() / 2e9
    found["rest"] = found["whole"] - sum(found[kind] for kind in KINDS.values())
    return found


def uniform(model: nn.Module, space, costs) -> Any:
    """The architecture that keeps the same share of every width site, within the budget; which units is left open."""
    pruner = default_host().create("pruner", "uniform", {"criterion": "random"})
    return pruner.prune(PrunerContext(model, space, costs, TARGET, 0, lambda timestep=None: iter(()))).architecture


def kept(space, architecture) -> str:
    """The share of the units of each kind that stays."""
    of: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for site, units in zip(space.sites, architecture.kept, strict=True):
        of[site.kind][0] += len(units)
        of[site.kind][1] += site.units
    return ", ".join(f"{UNIT_KINDS[kind]} {stay:,} of {there:,}" for kind, (stay, there) in of.items())


def describe(name: str) -> tuple[str, str]:
    """Rows of both tables."""
    published = MODELS[name]
    model = published.build()
    space = aptp.search_space(model)
    costs = aptp.cost_model(model, space, text_tokens=published.tokens)
    every = aptp.cost_model(model, aptp.search_space(model, blocks="all"), text_tokens=published.tokens)
    family = denoiser_of(model)
    inputs = family.example_inputs(model, family.sample_size(model), published.tokens)
    dense = gmacs_by_kind(model, inputs)
    assert abs(dense["whole"] * 1e9 / costs.dense - 1) < 1e-12
    architecture = uniform(model, space, costs)
    smaller = gmacs_by_kind(aptp.slice(model, space, architecture), inputs)
    assert abs(smaller["whole"] * 1e9 / float(costs.cost(architecture.gates)) - 1) < 1e-12
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = model.config.sample_size
    columns = ["whole", *KINDS.values(), "rest"]
    return (
        f"| {name} | {millions:,.1f} | {size} × {size} | {published.tokens} | "
        + " | ".join(f"{dense[kind]:,.2f}" for kind in columns)
        + f" | {costs.floor:.3f}, {every.floor:.3f} |",
        f"| {name} | " + " | ".join(f"{smaller[kind]:,.2f}" for kind in columns) + f" | {kept(space, architecture)} |",
    )


if __name__ == "__main__":
    tables = [describe(name) for name in MODELS]
    kinds = " | ".join(KINDS.values())
    print(f"| model | million parameters | latents | text | GMACs | {kinds} | rest | floor: last, all blocks |")
    print("| --- " * 10 + "|", *(dense for dense, _ in tables), sep="\n")
    print(f"\n| at {TARGET} | GMACs | {kinds} | rest | kept |")
    print("| --- " * 8 + "|", *(smaller for _, smaller in tables), sep="\n")
