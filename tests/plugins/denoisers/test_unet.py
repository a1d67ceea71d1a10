"""The anatomy of U-Nets, and how they are called."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from aptp.core.errors import RequestError
from aptp.plugins.denoisers.unet import UNetDenoiser
from aptp.testing import FAMILIES, check_denoiser, tiny_inputs, tiny_unet

DENOISER = UNetDenoiser()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2])
def test_conforms(family, layers):
    check_denoiser(DENOISER, tiny_unet(family, layers_per_block=layers))


def run_order(unet) -> list[str]:
    """The order in which modules start to run."""
    order, handles = [], []
    for path, module in unet.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: order.append(path)))
    with torch.no_grad():
        unet(**tiny_inputs(unet))
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_come_in_the_order_in_which_they_run(family):
    unet = tiny_unet(family)
    order = run_order(unet)
    places = [order.index(part.path) for part in DENOISER.anatomy(unet).parts]
    assert places == sorted(places)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_a_kind_is_a_part(family):
    unet = tiny_unet(family)
    parts = DENOISER.anatomy(unet).width
    found = {part.kind: {p.path for p in parts if p.kind == part.kind} for part in parts}
    names = {type(m).__name__: set() for m in unet.modules()}
    for path, module in unet.named_modules():
        names[type(module).__name__].add(path)
    assert found["resnet_channels"] == names["ResnetBlock2D"]
    assert found["attention_heads"] == names["Attention"]
    assert found["feedforward_units"] == names["FeedForward"]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_those_whose_input_starts_with_what_they_pass_on(family):
    unet = tiny_unet(family, block_out_channels=(16, 32), layers_per_block=2)
    blocks = {part.path: part for part in DENOISER.anatomy(unet).blocks}
    assert {"mid_block.resnets.0", "mid_block.resnets.1"} <= blocks.keys()
    assert "up_blocks.0.resnets.0" in blocks
    assert "up_blocks.1.resnets.0" not in blocks  # 32 channels come in, 16 go out
    assert "down_blocks.0.resnets.0" in blocks
    assert "down_blocks.1.resnets.0" not in blocks
    assert blocks["up_blocks.1.resnets.1"].channels == 16


def test_a_module_with_several_transformer_blocks_gives_the_single_blocks():
    blocks = {part.path for part in DENOISER.anatomy(tiny_unet("sdxl")).blocks}
    assert "down_blocks.1.attentions.0.transformer_blocks.1" in blocks
    assert "down_blocks.1.attentions.0" not in blocks
    assert "down_blocks.0.attentions.0" in {part.path for part in DENOISER.anatomy(tiny_unet("sd2")).blocks}


def test_last_blocks_are_the_paper_s():
    assert set(DENOISER.anatomy(tiny_unet("sd2")).last_blocks) == {
        "down_blocks.0.resnets.1",
        "down_blocks.0.attentions.1",
        "down_blocks.1.resnets.1",
        "up_blocks.0.resnets.2",
        "up_blocks.1.resnets.2",
        "up_blocks.1.attentions.2",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_is_the_model_s_own_answer(family):
    unet = tiny_unet(family)
    inputs = tiny_inputs(unet, 2)
    text = {"encoder_hidden_states": inputs["encoder_hidden_states"], **inputs.get("added_cond_kwargs", {})}
    with torch.no_grad():
        predicted = DENOISER.predict(unet, inputs["sample"], inputs["timestep"], text)
        assert torch.equal(predicted, unet(**inputs).sample)


def test_what_it_supports():
    assert DENOISER.supports(tiny_unet("sd1"))
    assert not DENOISER.supports(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4))


@pytest.mark.parametrize(
    ("down", "up"), [("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")]
)
def test_u_nets_of_other_families_are_refused(down, up):
    unet = UNet2DConditionModel(
        block_out_channels=(16, 16),
        down_block_types=(down, "DownBlock2D"),
        up_block_types=("UpBlock2D", up),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
    )
    with pytest.raises(RequestError, match="Attention"):
        DENOISER.anatomy(unet)


@pytest.mark.parametrize("zeros", [True, False])
def test_without_a_caption_xl_is_conditioned_as_its_own_pipeline_does_under_guidance(zeros, small_tokenizer):
    config = CLIPTextConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=small_tokenizer.model_max_length,
        projection_dim=8,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=small_tokenizer,
        tokenizer_2=small_tokenizer,
        unet=tiny_unet("sdxl"),
        scheduler=None,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    with torch.no_grad():
        mine = DENOISER.unconditional(pipeline, 8)
        _, hidden, _, pooled = pipeline.encode_prompt("a red star", device="cpu", do_classifier_free_guidance=True)
    assert torch.equal(mine["encoder_hidden_states"], hidden)
    assert torch.equal(mine["text_embeds"], pooled)
    assert bool((hidden == 0).all()) is zeros
    assert mine["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]
