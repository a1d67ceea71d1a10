"""What published models cost by kind of layer, how cheap each granularity can make them, and what 0.66 keeps of them.

    python benchmarks/published_models.py

Models are made of their published configurations on the meta device, so that no weights are needed. Every count is that
of torch's flop counter, halved; it stops where the cost model `macs` says otherwise of a dense or a pruned model.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import aptp
from aptp.api import denoiser_of
from aptp.core.anatomy import HEADS
from aptp.core.architecture import Architecture, SearchSpace
from aptp.core.budget import CostModel
from aptp.core.pruner import PrunerContext
from aptp.host import default_host

TARGET = 0.66
KINDS = ("ResNet", "self-attention", "cross-attention", "joint attention", "feed-forward")
UNITS = {"channel groups": ("resnet_channels",), "heads": HEADS, "feed-forward bundles": ("feedforward_units",)}
"""The kinds of site whose units are counted together."""
GRANULARITIES: dict[str, tuple[str, dict[str, str]]] = {
    "width": ("width", {}),
    "depth, last": ("depth", {"blocks": "last"}),
    "depth, all": ("depth", {"blocks": "all"}),
    "width-depth, last": ("width-depth", {"blocks": "last"}),
    "width-depth, all": ("width-depth", {"blocks": "all"}),
}


@dataclass(frozen=True)
class Published:
    """A denoiser as it is published: its class, its configuration, and the length of its text."""

    kind: type[nn.Module]
    tokens: int
    config: dict[str, Any]

    def build(self, device: str = "meta") -> Any:
        with torch.device(device):
            return self.kind(**self.config).eval().requires_grad_(False)


UNET = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}
SD21 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
SDXL = {
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
}
PIXART = {
    "sample_size": 128,
    "num_layers": 28,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "use_additional_conditions": False,
}
SD3 = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384}
SD35_LARGE = {"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
CLIP, T5 = 77, 256
MODELS = {
    "SD 1.5": Published(UNet2DConditionModel, CLIP, {**UNET, "attention_head_dim": 8, "cross_attention_dim": 768}),
    "SD 2.1": Published(UNet2DConditionModel, CLIP, {**UNET, **SD21, "sample_size": 96}),
    "SDXL": Published(UNet2DConditionModel, CLIP, SDXL),
    "PixArt-α 512": Published(PixArtTransformer2DModel, 120, {**PIXART, "sample_size": 64}),
    "PixArt-α 1024": Published(PixArtTransformer2DModel, 120, {**PIXART, "use_additional_conditions": True}),
    "PixArt-Σ 1024": Published(PixArtTransformer2DModel, 300, PIXART),
    "SD 3 medium": Published(SD3Transformer2DModel, CLIP + T5, SD3),
    "SD 3.5 medium": Published(SD3Transformer2DModel, CLIP + T5, {**SD3, **SD35_MEDIUM}),
    "SD 3.5 large": Published(SD3Transformer2DModel, CLIP + T5, {**SD3, **SD35_LARGE}),
}


def kind_of(layer: nn.Module) -> str | None:
    """Which of `KINDS` a module is, if any."""
    match layer:
        case ResnetBlock2D():
            return "ResNet"
        case FeedForward():
            return "feed-forward"
        case Attention():
            if getattr(layer, "add_q_proj", None) is not None:
                return "joint attention"
            return "cross-attention" if layer.is_cross_attention else "self-attention"
    return None


def gmacs_by_kind(model: nn.Module, tokens: int) -> dict[str, float]:
    """10⁹ multiply-accumulates of one call: of the whole, of each kind of layer and of the rest."""
    family = denoiser_of(model)
    inputs = family.example_inputs(model, family.sample_size(model), tokens)
    kinds = {path: kind for path, layer in model.named_modules() if (kind := kind_of(layer))}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    found: dict[str, float] = defaultdict(float, whole=counter.get_total_flops() / 2e9)
    for path, counts in counter.get_flop_counts().items():
        if kind := kinds.get(path.removeprefix(f"{type(model).__name__}.")):
            found[kind] += sum(counts.values()) / 2e9
    found["rest"] = found["whole"] - sum(found[kind] for kind in KINDS)
    return found


def uniform(model: nn.Module, space: SearchSpace, costs: CostModel) -> Architecture:
    """The architecture that keeps the same share of every width site, within the budget; which units is left open."""
    pruner = default_host().create("pruner", "uniform", {"criterion": "random"})
    return pruner.prune(PrunerContext(model, space, costs, TARGET, 0, lambda timestep=None: iter(()))).architecture


def checked(name: str, counted: dict[str, float], macs: float) -> None:
    if abs(counted["whole"] * 1e9 - macs) > 0.5:
        raise SystemExit(f"{name}: torch counts {counted['whole'] * 1e9:,.0f} MACs, the cost model {macs:,.0f}")


def rows(name: str) -> tuple[str, str, str]:
    """A model's row of each of the three tables."""
    published = MODELS[name]
    model = published.build()
    floors = {}
    for title, (granularity, options) in GRANULARITIES.items():
        space = aptp.search_space(model, granularity, **options)
        floors[title] = aptp.cost_model(model, space, text_tokens=published.tokens).floor
    dense = gmacs_by_kind(model, published.tokens)
    space = aptp.search_space(model)
    costs = aptp.cost_model(model, space, text_tokens=published.tokens)
    checked(name, dense, costs.dense)
    architecture = uniform(model, space, costs)
    small = aptp.slice(model, space, architecture)
    kept = gmacs_by_kind(small, published.tokens)
    checked(f"{name}, pruned", kept, float(costs.cost(architecture.gates)))
    shares = [f"{kept[kind] / dense[kind]:.0%}" if dense[kind] else "" for kind in (*KINDS, "rest")]
    counts = [f"{dense[kind]:,.1f}" if dense[kind] else "" for kind in (*KINDS, "rest")]
    return (
        row(name, millions(model), f"{model.config.sample_size}²", published.tokens, f"{dense['whole']:,.2f}", *counts),
        row(name, *(f"{floor:.3f}" for floor in floors.values())),
        row(name, millions(small), f"{kept['whole']:,.2f}", *shares, *units(architecture)),
    )


def units(architecture: Architecture) -> list[str]:
    """How many units stay of how many, of each kind of unit."""
    found = []
    for kinds in UNITS.values():
        sites = [(site, kept) for site, kept in zip(architecture.space.sites, architecture.kept, strict=True)]
        mine = [(len(kept), site.units) for site, kept in sites if site.kind in kinds]
        stay, there = map(sum, zip(*mine, strict=True)) if mine else (0, 0)
        found.append(f"{stay:,} of {there:,}" if mine else "")
    return found


def millions(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f}"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


TITLES = (
    row("dense", "million parameters", "latents", "text", "GMACs", *KINDS, "rest"),
    row("floor", *GRANULARITIES),
    row(f"at {TARGET}", "million parameters", "GMACs", *KINDS, "rest", *UNITS),
)

if __name__ == "__main__":
    tables = zip(TITLES, zip(*map(rows, MODELS), strict=True), strict=True)
    for title, body in tables:
        print(title, row(*["---"] * (title.count("|") - 1)), *body, "", sep="\n")
