"""MACs against torch's own flop counter, and against the figures of Stable Diffusion 2.1."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import aptp
from aptp.testing import MODELS, tiny_inputs, tiny_unet

GRANULARITIES = ("width", "depth", "width-depth")


def counted(unet, **sizes) -> float:
    """Half of torch's flops: its counter knows the products of the plain attention only."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet(**tiny_inputs(unet, **sizes))
    return counter.get_total_flops() / 2


@functools.cache
def profiled(family: str, granularity: str, size: int, tokens: int):
    unet = MODELS[family]()
    space = aptp.search_space(unet, granularity=granularity)
    return unet, space, aptp.cost_model(unet, space, budget="macs", sample_size=size, text_tokens=tokens)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=4)  # torch's counter is slow
@given(keep=st.floats(0, 1), seed=st.integers(0, 1000), sizes=st.sampled_from([(4, 9), (12, 1)]))
def test_macs_are_those_of_the_sliced_model(family, granularity, keep, seed, sizes):
    size, tokens = sizes
    unet, space, costs = profiled(family, granularity, size, tokens)
    architecture = aptp.Architecture.random(space, keep, seed)
    assert costs.unit == "MACs"
    assert costs.cost(architecture.gates).item() == counted(
        aptp.slice(unet, space, architecture), sample_size=size, text_tokens=tokens
    )


def test_the_floor_is_reached_by_the_smallest_architecture():
    unet = tiny_unet("sd2")
    space = aptp.search_space(unet)
    costs = aptp.cost_model(unet, space)
    smallest = aptp.Architecture.random(space, keep=0.0)
    assert costs.fraction(smallest.gates).item() == costs.floor
    assert counted(aptp.slice(unet, space, smallest), text_tokens=77) == costs.cost(smallest.gates).item()


def test_profiling_leaves_nothing():
    unet = tiny_unet("sd2")
    aptp.cost_model(unet, aptp.search_space(unet))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    assert all(p.device.type == "cpu" for p in unet.parameters())


@pytest.fixture(scope="module")
def stable_diffusion():
    """The U-Net of Stable Diffusion 2.1, without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=96,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )


@pytest.mark.parametrize(("size", "gmacs"), [(None, 1074.55), (96, 1074.55), (32, 90.5)])
def test_stable_diffusion(stable_diffusion, size, gmacs):
    costs = aptp.cost_model(stable_diffusion, aptp.search_space(stable_diffusion), sample_size=size)
    assert costs.dense / 1e9 == pytest.approx(gmacs, abs=0.005 if gmacs > 1000 else 0.05)


def test_the_published_cost_counts_cross_attention_as_image_by_image(stable_diffusion):
    costs = aptp.cost_model(stable_diffusion, aptp.search_space(stable_diffusion))
    extra = 0
    for path, module in stable_diffusion.named_modules():
        if path.endswith("attn2"):
            stage, number = path.split(".")[:2]
            level = {"down_blocks": lambda n: n, "up_blocks": lambda n: 3 - n}.get(stage, lambda n: 3)(
                int(number) if number.isdigit() else 0
            )
            queries = (96 // 2**level) ** 2
            extra += 2 * queries * (queries - 77) * module.inner_dim
    assert (costs.dense + extra) / 1e9 == pytest.approx(1384.2, rel=0.003)


def test_the_floor_of_the_paper_s_depth_sites(stable_diffusion):
    space = aptp.search_space(stable_diffusion, granularity="depth", blocks="last")
    assert aptp.cost_model(stable_diffusion, space, sample_size=32).floor == pytest.approx(0.67, abs=0.005)


def test_other_precisions_cost_the_same():
    unet = tiny_unet("sdxl")
    space = aptp.search_space(unet)
    dense = aptp.cost_model(unet, space).dense
    assert aptp.cost_model(unet.to(torch.bfloat16), space).dense == dense


def test_slopes_are_finite_differences():
    unet = tiny_unet("sd2")
    space = aptp.search_space(unet, blocks="all")
    costs = aptp.cost_model(unet, space)
    gates = torch.rand(space.num_gates, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(costs.cost(gates), gates)
    opened, closed = (gates.detach().repeat(space.num_gates, 1).fill_diagonal_(end) for end in (1.0, 0.0))
    torch.testing.assert_close(slope, costs.cost(opened) - costs.cost(closed), rtol=1e-9, atol=1e-3)
