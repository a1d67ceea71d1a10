"""What published denoisers cost, by the kind of part that carries it: `python benchmarks/sd3_size.py`.

Models are made of their published configurations on the meta device, so that no weights are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import aptp
from aptp.api import denoiser_of
from aptp.core.anatomy import Part


class Published(NamedTuple):
    """A denoiser by its configuration, with the size of its latents and the length of its encoded prompts."""

    family: type
    config: Mapping[str, Any]
    sample_size: int
    text_tokens: int

    def build(self) -> nn.Module:
        with torch.device("meta"):
            return self.family(**self.config)


SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 24 * 64}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 38 * 64}
T5_AND_CLIP = 77 + 256
PUBLISHED = {
    "Stable Diffusion 2.1": Published(
        UNet2DConditionModel,
        {
            "sample_size": 96,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        96,
        77,
    ),
    "Stable Diffusion 3 medium": Published(
        SD3Transformer2DModel, {**SD3, **MEDIUM, "pos_embed_max_size": 192}, 128, T5_AND_CLIP
    ),
    "Stable Diffusion 3.5 medium": Published(
        SD3Transformer2DModel,
        {
            **SD3,
            **MEDIUM,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        128,
        T5_AND_CLIP,
    ),
    "Stable Diffusion 3.5 large": Published(
        SD3Transformer2DModel, {**SD3, **LARGE, "pos_embed_max_size": 192, "qk_norm": "rms_norm"}, 128, T5_AND_CLIP
    ),
}


def macs_by_kind(module: nn.Module, sample_size: int, text_tokens: int) -> dict[str, int]:
    """Dense multiply-accumulates of one call: what the gates of each kind of part can close, and the rest."""
    space = aptp.search_space(module, granularity="width")
    costs = aptp.cost_model(module, space, sample_size=sample_size, text_tokens=text_tokens)
    found: dict[str, int] = {}
    for kind in dict.fromkeys(map(name_of, space.sites)):
        closed = torch.cat([torch.full((site.units,), float(name_of(site) != kind)) for site in space.sites])
        found[kind] = round(costs.dense - costs.cost(closed).item())
    return {**found, "not gated in width": round(costs.dense) - sum(found.values())}


@torch.no_grad()
def counted_macs(module: nn.Module, sample_size: int, text_tokens: int) -> int:
    """The same in all, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        module(**denoiser_of(module).example_inputs(module, sample_size, text_tokens))
    return counter.get_total_flops() // 2


def name_of(site: Part) -> str:
    """The kind of a part, and of a feed-forward its stream, where the text has one of its own."""
    text = " of the text" if site.path.endswith("ff_context") else ""
    return site.kind.replace("_", " ") + text


def main() -> None:
    for name, published in PUBLISHED.items():
        module = published.build()
        macs = macs_by_kind(module, published.sample_size, published.text_tokens)
        if sum(macs.values()) != (counted := counted_macs(module, published.sample_size, published.text_tokens)):
            raise SystemExit(f"{name}: torch counts {counted:,}, not {sum(macs.values()):,}")
        parameters = sum(parameter.numel() for parameter in module.parameters())
        print(f"{name}: {sum(macs.values()) / 1e9:,.1f} GMACs, {parameters / 1e9:.2f} billion parameters")
        for kind, count in macs.items():
            print(f"  {kind}: {count / 1e9:,.1f}")


if __name__ == "__main__":
    main()
