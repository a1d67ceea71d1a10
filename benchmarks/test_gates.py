"""What gates cost: a forward and backward pass of the gated frozen model over one without; the aim is 1.1 at most."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch
from diffusers import UNet2DConditionModel

import aptp
from aptp.testing import tiny_inputs

TARGET = 1.10
ROUNDS = 9


def sd_shaped() -> UNet2DConditionModel:
    """Stable Diffusion 2.1's U-Net at a fifth of its width."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 256, 256),
        attention_head_dim=(1, 2, 4, 4),
        norm_num_groups=32,
        cross_attention_dim=128,
        use_linear_projection=True,
    ).requires_grad_(False)


def seconds(unet, inputs, gated) -> float:
    """Of a forward and backward pass to the input; with gates, to them as well."""
    inputs["sample"].grad = None
    start = time.perf_counter()
    with gated():
        unet(**inputs).sample.square().mean().backward()
    return time.perf_counter() - start


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("a_row_each", [True, False], ids=["a row each", "one row"])
def test_gates_are_cheap(benchmark, batch, a_row_each):
    from contextlib import nullcontext

    unet = sd_shaped()
    space = aptp.search_space(unet)
    inputs = tiny_inputs(unet, batch, sample_size=16, text_tokens=77)
    inputs["sample"].requires_grad_()
    gates = torch.rand(batch if a_row_each else 1, space.num_gates).requires_grad_()
    times: dict[str, list[float]] = {"plain": [], "gated": []}

    def both() -> None:
        times["plain"].append(seconds(unet, inputs, nullcontext))
        times["gated"].append(seconds(unet, inputs, lambda: aptp.gated(unet, space, gates)))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    plain, gated = (times[name][1:] for name in ("plain", "gated"))
    ratio = median(gated) / median(plain)
    benchmark.extra_info.update(
        ratio=ratio, paired=median(g / p for g, p in zip(gated, plain, strict=True)), target=TARGET
    )
    print(f"\ngates: time ×{ratio:.3f} of without, aim ×{TARGET} at most")
