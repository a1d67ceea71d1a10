"""The anatomy of PixArt's transformer, and how it is called; whole pipelines are in the tests of the harness."""

from __future__ import annotations

import pytest
import torch

import aptp
from aptp.plugins.denoisers.pixart import SIZES, PixArtDenoiser
from aptp.testing import PIXART, check_denoiser, tiny_inputs, tiny_pixart, tiny_unet

DENOISER = PixArtDenoiser()


@pytest.mark.parametrize("family", PIXART)
@pytest.mark.parametrize("layers", [1, 3])
def test_conforms(family, layers):
    check_denoiser(DENOISER, tiny_pixart(family, num_layers=layers))


@pytest.mark.parametrize("family", PIXART)
def test_every_block_head_and_unit_is_a_part_in_the_order_in_which_it_runs(family):
    model = tiny_pixart(family)
    anatomy = DENOISER.anatomy(model)
    kinds = [("", "block"), (".attn1", "attention_heads"), (".attn2", "attention_heads"), (".ff", "feedforward_units")]
    blocks = [f"transformer_blocks.{i}" for i in range(3)]
    expected = [(block + end, kind) for block in blocks for end, kind in kinds]
    assert [(part.path, part.kind) for part in anatomy.parts] == expected
    assert [part.units for part in anatomy.parts[:4]] == [1, 4, 4, 32]
    assert all(part.inside == (part.path.rsplit(".", 1)[0],) for part in anatomy.width)
    assert list(anatomy.last_blocks) == list(DENOISER.blocks(model)) == blocks


@pytest.mark.parametrize("family", PIXART)
@pytest.mark.parametrize("out_channels", [4, 8])
def test_predict_is_the_model_s_own_answer_without_its_variance(family, out_channels):
    model = tiny_pixart(family, out_channels=out_channels)
    inputs = tiny_inputs(model, 2)
    text = {name: inputs[name] for name in ("encoder_hidden_states", "encoder_attention_mask")}
    text |= inputs.get("added_cond_kwargs", {})
    with torch.no_grad():
        predicted = DENOISER.predict(model, inputs["hidden_states"], inputs["timestep"], text)
        assert torch.equal(predicted, model(**inputs).sample[:, :4])
        assert predicted.shape == inputs["hidden_states"].shape
        unmasked = text | {"encoder_attention_mask": torch.ones_like(text["encoder_attention_mask"])}
        other = DENOISER.predict(model, inputs["hidden_states"], inputs["timestep"], unmasked)
        assert not torch.allclose(other, predicted)


def test_alpha_is_told_sizes_and_sigma_is_not():
    assert set(SIZES) == set(tiny_inputs(tiny_pixart("pixart-alpha"))["added_cond_kwargs"])
    assert "added_cond_kwargs" not in tiny_inputs(tiny_pixart("pixart-sigma"))


def test_all_blocks_can_go():
    model = tiny_pixart()
    space = aptp.search_space(model, "depth")
    inputs = tiny_inputs(model, 2)
    none = aptp.Architecture(space, torch.zeros(space.num_gates))
    empty = aptp.slice(model, space, none)
    assert not any(name.startswith("transformer_blocks") for name, _ in empty.named_parameters())
    with torch.no_grad(), aptp.gated(model, space, none.gates):
        torch.testing.assert_close(empty(**inputs).sample, model(**inputs).sample)


def test_what_it_supports():
    assert DENOISER.supports(tiny_pixart())
    assert not DENOISER.supports(tiny_unet())
