"""How fast slices are at batch 8; the aim: with a fraction f of the MACs, f/0.85 of the dense time at most."""

from __future__ import annotations

import time
from importlib.resources import files
from statistics import median

import pytest
import torch
from diffusers import UNet2DConditionModel

import aptp
from aptp.testing import tiny_inputs

EFFICIENCY = 0.85
BATCH = 8
ROUNDS = 15


def sd_shaped() -> tuple[UNet2DConditionModel, int, int]:
    """Stable Diffusion 2.1's U-Net at half its width in three stages, its latents' size and its text's length."""
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(160, 320, 640),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=256,
        use_linear_projection=True,
    )
    return unet.eval(), 16, 77


def embedded() -> tuple[UNet2DConditionModel, int, int]:
    """The embedded model at its own size."""
    unet = UNet2DConditionModel.from_pretrained(files("aptp") / "assets" / "tiny" / "unet", torch_dtype=torch.float32)
    return unet.eval(), unet.config.sample_size, 24


MODELS = {"sd-shaped": sd_shaped, "embedded": embedded}


@torch.no_grad()
def seconds(unet, inputs) -> float:
    start = time.perf_counter()
    unet(**inputs)
    return time.perf_counter() - start


@pytest.mark.parametrize("keep", [0.8, 0.6, 0.4])
@pytest.mark.parametrize("model", MODELS)
def test_slices_are_fast(benchmark, model, keep):
    unet, size, tokens = MODELS[model]()
    space = aptp.search_space(unet)
    architecture = aptp.Architecture.random(space, keep, seed=0)
    fraction = aptp.cost_model(unet, space, sample_size=size, text_tokens=tokens).fraction(architecture.gates).item()
    inputs = tiny_inputs(unet, BATCH, sample_size=size, text_tokens=tokens)
    sliced = aptp.slice(unet, space, architecture)
    times: dict[str, list[float]] = {"dense": [], "sliced": []}

    def both() -> None:
        times["dense"].append(seconds(unet, inputs))
        times["sliced"].append(seconds(sliced, inputs))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=2)
    ratio = median(times["sliced"][2:]) / median(times["dense"][2:])
    benchmark.extra_info.update(fraction=fraction, ratio=ratio, efficiency=fraction / ratio, target=EFFICIENCY)
    print(f"\n{ratio:.3f} of the time for {fraction:.3f} of the MACs, aim {fraction / EFFICIENCY:.3f} at most")
