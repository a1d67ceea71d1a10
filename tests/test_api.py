"""What users rely on, as the first page shows it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL

import aptp
from aptp.core.errors import RequestError
from aptp.testing import tiny_inputs, tiny_unet


def test_the_first_page(tmp_path):
    unet = tiny_unet("sd2")
    space = aptp.search_space(unet, granularity="width-depth")
    assert space.num_gates == sum(site.units for site in space.sites) == len(space.ones())
    arch = aptp.Architecture.random(space, keep=0.7, seed=0)
    arch.save(tmp_path / "architecture.json")
    assert torch.equal(aptp.Architecture.load(tmp_path / "architecture.json").gates, arch.gates)
    inputs = tiny_inputs(unet)
    with aptp.gated(unet, space, arch.gates):
        masked = unet(inputs["sample"], inputs["timestep"], encoder_hidden_states=inputs["encoder_hidden_states"])
    small = aptp.slice(unet, space, arch)
    torch.testing.assert_close(small(**inputs).sample, masked.sample, rtol=1e-4, atol=1e-5)
    costs = aptp.cost_model(unet, space, budget="macs", sample_size=8, text_tokens=5)
    assert costs.unit == "MACs"
    assert costs.fraction(arch.gates).item() == costs.cost(arch.gates).item() / costs.dense < 1


def test_a_cost_is_at_the_model_s_own_size_unless_told():
    unet = tiny_unet("sd2")
    space = aptp.search_space(unet)
    assert aptp.cost_model(unet, space).dense == aptp.cost_model(unet, space, sample_size=8, text_tokens=77).dense
    assert aptp.cost_model(unet, space, sample_size=16).dense > 3 * aptp.cost_model(unet, space).dense


def test_options_reach_the_granularity():
    unet = tiny_unet("sd2")
    assert len(aptp.search_space(unet, blocks="all").sites) > len(aptp.search_space(unet).sites)
    with pytest.raises(RequestError, match="blocks"):
        aptp.search_space(unet, block="all")


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda unet, space: aptp.search_space(unet, granularity="dept"), "'depth'"),
        (lambda unet, space: aptp.cost_model(unet, space, budget="mac"), "'macs'"),
    ],
)
def test_unknown_names_suggest_neighbours(call, hint):
    unet = tiny_unet("sd2")
    with pytest.raises(RequestError, match=f"did you mean .*{hint}"):
        call(unet, aptp.search_space(unet))


def test_models_of_no_known_family_are_refused():
    with pytest.raises(RequestError, match="AutoencoderKL"):
        aptp.search_space(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4))


def test_a_space_of_another_model_is_refused():
    unet, space = tiny_unet("sd2"), aptp.search_space(tiny_unet("sdxl"))
    with pytest.raises(RequestError, match="another model"):
        aptp.cost_model(unet, space)
    with pytest.raises(RequestError, match="another model"):
        aptp.slice(unet, space, aptp.Architecture.random(space))


def test_public_names_load_when_they_are_used():
    for name in aptp.__all__:
        value = getattr(aptp, name)
        assert vars(aptp)[name] is value
    assert set(aptp.__all__) <= set(dir(aptp))
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        aptp.prune  # noqa: B018


def test_importing_aptp_brings_in_nothing_heavy():
    program = "import aptp, sys; print({'torch', 'diffusers', 'transformers', 'numpy'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"
