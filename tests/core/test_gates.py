"""Gates: masked equals sliced, hands off, a row each, and gradients."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aptp
from aptp.core.architecture import SearchSpace
from aptp.core.errors import RequestError
from aptp.testing import (
    FAMILIES,
    MODELS,
    PIXART,
    SD3,
    tiny_inputs,
    tiny_pixart,
    tiny_sd3,
    tiny_space,
    tiny_unet,
)

SPACES = {
    "width": {},
    "depth": {},
    "depth-last": {"blocks": "last"},
    "width-depth": {},
    "width-depth-all": {"blocks": "all"},
}
unets = st.fixed_dictionaries(
    {
        "family": st.sampled_from(sorted(FAMILIES)),
        "seed": st.integers(0, 1000),
        "layers_per_block": st.integers(1, 2),
        "norm_num_groups": st.sampled_from([2, 4, 8]),
        "cross_attention_dim": st.sampled_from([6, 12]),
        "block_out_channels": st.sampled_from([(16, 32), (16, 16), (32, 16)]),
        "resnet_time_scale_shift": st.sampled_from(["default", "scale_shift"]),
    }
)
transformers = st.fixed_dictionaries(
    {
        "family": st.sampled_from(sorted(PIXART)),
        "seed": st.integers(0, 1000),
        "num_layers": st.integers(1, 3),
        "attention_head_dim": st.sampled_from([3, 6]),
        "num_attention_heads": st.just(4),
        "patch_size": st.sampled_from([1, 2]),
        "out_channels": st.sampled_from([4, 8]),
        "activation_fn": st.sampled_from(["gelu-approximate", "geglu"]),
    }
).map(lambda config: config | {"cross_attention_dim": 4 * config["attention_head_dim"]})
joint_transformers = st.fixed_dictionaries(
    {
        "family": st.sampled_from(sorted(SD3)),
        "seed": st.integers(0, 1000),
        "num_layers": st.integers(1, 3),
        "num_attention_heads": st.sampled_from([2, 4]),
        "patch_size": st.sampled_from([1, 2]),
        "dual_attention_layers": st.sampled_from([(), (0,), (0, 1, 2)]),
        "qk_norm": st.sampled_from([None, "rms_norm"]),
    }
).map(lambda config: config | {"caption_projection_dim": 6 * config["num_attention_heads"]})
CONFIGS = {tiny_unet: unets, tiny_pixart: transformers, tiny_sd3: joint_transformers}


def space_of(unet, name: str) -> SearchSpace:
    return aptp.search_space(unet, granularity=name.removesuffix("-last").removesuffix("-all"), **SPACES[name])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def answer(unet, inputs, space=None, gates=None) -> torch.Tensor:
    if space is None:
        return unet(**inputs).sample
    with aptp.gated(unet, space, gates):
        return unet(**inputs).sample


@pytest.mark.parametrize("granularity", SPACES)
@pytest.mark.parametrize("make", CONFIGS)
@given(data=st.data(), keep=st.floats(0, 1), seed=st.integers(0, 1000))
def test_masked_equals_sliced_in_float64(make, granularity, data, keep, seed):
    unet = make(**data.draw(CONFIGS[make])).double()
    space = space_of(unet, granularity)
    architecture = aptp.Architecture.random(space, keep, seed)
    inputs = tiny_inputs(unet, 2, torch.float64, seed=seed)
    masked = answer(unet, inputs, space, architecture.gates)
    assert relative(masked, answer(aptp.slice(unet, space, architecture), inputs)) <= 1e-10


@pytest.mark.parametrize("granularity", SPACES)
@pytest.mark.parametrize("family", MODELS)
def test_masked_equals_sliced_in_float32(family, granularity):
    unet = MODELS[family]()
    space, inputs = space_of(unet, granularity), tiny_inputs(unet, 2)
    architecture = aptp.Architecture.random(space, 0.3, seed=1)
    masked = answer(unet, inputs, space, architecture.gates)
    sliced = answer(aptp.slice(unet, space, architecture), inputs)
    assert relative(masked, sliced) <= 1e-5
    assert relative(masked, answer(unet, inputs)) > 1e-2  # the architecture did remove something that counts


@pytest.mark.parametrize("family", MODELS)
def test_open_gates_change_nothing(family):
    unet = MODELS[family]()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 2)
    assert torch.equal(answer(unet, inputs, space, space.ones()), answer(unet, inputs))


@pytest.mark.parametrize("family", MODELS)
def test_hands_off(family):
    unet = MODELS[family]()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 2)
    before, weights = answer(unet, inputs), {n: t.clone() for n, t in unet.state_dict().items()}
    gates = torch.rand(2, space.num_gates)
    assert not torch.equal(answer(unet, inputs, space, gates), before)
    assert torch.equal(answer(unet, inputs), before)
    with pytest.raises(ZeroDivisionError), aptp.gated(unet, space, gates):
        raise ZeroDivisionError
    with pytest.raises(RequestError, match="no multiple"), aptp.gated(unet, space, torch.rand(3, space.num_gates)):
        unet(**inputs)
    assert torch.equal(answer(unet, inputs), before)
    assert all(torch.equal(t, weights[n]) for n, t in unet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_an_unknown_site_attaches_nothing():
    unet = tiny_unet("sd2")
    space = tiny_space(tiny_unet("sdxl"))
    with pytest.raises(RequestError, match="another model"), aptp.gated(unet, space, space.ones()):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


@pytest.mark.parametrize("family", MODELS)
def test_gates_of_a_row_act_on_that_row_alone(family):
    unet = MODELS[family]().double()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 3, torch.float64)
    gates = torch.rand(3, space.num_gates, dtype=torch.float64)
    together = answer(unet, inputs, space, gates)
    for row in range(3):
        assert relative(together[row : row + 1], answer(unet, rows(inputs, [row]), space, gates[row])) <= 1e-10


@pytest.mark.parametrize("family", MODELS)
def test_guidance_doubles_the_batch(family):
    unet = MODELS[family]().double()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 4, torch.float64)
    gates = torch.rand(2, space.num_gates, dtype=torch.float64)
    doubled = answer(unet, inputs, space, gates)
    assert relative(doubled, answer(unet, inputs, space, gates.repeat(2, 1))) <= 1e-12
    assert relative(doubled[2:], answer(unet, rows(inputs, [2, 3]), space, gates)) <= 1e-10


def rows(inputs: dict, index: list[int]) -> dict:
    return {name: rows(v, index) if isinstance(v, dict) else v[index] for name, v in inputs.items()}


@pytest.mark.parametrize("family", MODELS)
def test_gradients_equal_finite_differences(family):
    unet = MODELS[family]().double()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 2, torch.float64)
    gates = (0.3 + 0.7 * torch.rand(2, space.num_gates, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(answer(unet, inputs).shape, dtype=torch.float64)
    with aptp.gated(unet, space, gates):
        (slope,) = torch.autograd.grad((unet(**inputs).sample * weight).sum(), gates)
    assert (slope != 0).all()  # every gate of every site is felt
    direction, step = torch.randn_like(gates), 1e-5
    ends = [(answer(unet, inputs, space, (gates + s * direction).detach()) * weight).sum() for s in (step, -step)]
    rtol = 1e-3 if unet.config.get("qk_norm") else 1e-6  # diffusers' RMSNorm takes the variance in float32
    torch.testing.assert_close((slope * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("family", MODELS)
def test_every_kind_of_gate_learns(family):
    """The distillation gradient of relaxed gates, in the mean over the sites of a kind.

    Gates of width: within two orders of magnitude. Blocks beside them: the same of what a whole site gets, since a
    block is one gate and a feed-forward up to 32.
    """
    unet = MODELS[family]()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 8)
    dense = answer(unet, inputs)
    gates = (0.3 + 0.7 * torch.rand(8, space.num_gates)).requires_grad_()
    with aptp.gated(unet, space, gates):
        (slope,) = torch.autograd.grad((unet(**inputs).sample - dense).square().mean(), gates)
    of_gate, of_site = ({site.kind: [] for site in space.sites} for _ in range(2))
    for site, place in zip(space.sites, space.slices, strict=True):
        of_gate[site.kind].append(slope[:, place].abs().mean().item())
        of_site[site.kind].append(slope[:, place].abs().sum(-1).mean().item())
    width = [fmean(values) for kind, values in of_gate.items() if kind != "block"]
    sites = [fmean(values) for values in of_site.values()]
    assert max(width) <= 100 * min(width), width
    assert max(sites) <= 100 * min(sites), sites


@pytest.mark.parametrize("shape", [(7,), (2, 7), ()])
def test_gates_of_another_shape_are_refused(shape):
    unet = tiny_unet("sd2")
    space = tiny_space(unet)
    with pytest.raises(RequestError, match=str(space.num_gates)), aptp.gated(unet, space, torch.ones(shape)):
        pass


@pytest.mark.parametrize("family", MODELS)
def test_gates_work_under_autocast(family):
    unet = MODELS[family]()
    space, inputs = tiny_space(unet), tiny_inputs(unet, 2)
    gates = torch.rand(2, space.num_gates).requires_grad_()
    exact = answer(unet, inputs, space, gates.detach())
    with torch.autocast("cpu", torch.bfloat16), aptp.gated(unet, space, gates):
        output = unet(**inputs).sample
    output.float().sum().backward()
    assert gates.grad.isfinite().all()
    assert relative(output.detach().float(), exact) <= 0.1


def test_blocks_called_by_name_are_gated_alike():
    unet = tiny_unet("sd2")
    space, inputs = tiny_space(unet), tiny_inputs(unet)
    gates = torch.rand(space.num_gates)
    expected = answer(unet, inputs, space, gates)
    for module in unet.modules():
        if type(module).__name__ == "Transformer2DModel":
            forward = module.forward
            module.forward = lambda hidden, forward=forward, **kwargs: forward(hidden_states=hidden, **kwargs)
    assert torch.equal(answer(unet, inputs, space, gates), expected)
