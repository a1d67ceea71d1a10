"""The anatomy of Stable Diffusion 3, its two streams, and how it is called."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import aptp
from aptp.core.errors import RequestError
from aptp.core.slicing import PassThrough, save_expert
from aptp.models import load_pipeline
from aptp.plugins.denoisers.sd3 import SD3Denoiser
from aptp.testing import SD3, check_denoiser, tiny_inputs, tiny_sd3, tiny_space, tiny_unet

DENOISER = SD3Denoiser()


@pytest.mark.parametrize("family", SD3)
@pytest.mark.parametrize("layers", [1, 2])
def test_conforms(family, layers):
    check_denoiser(DENOISER, tiny_sd3(family, num_layers=layers))


@pytest.mark.parametrize("family", SD3)
def test_parts_come_in_the_order_in_which_they_run(family):
    model = tiny_sd3(family)
    order: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: order.append(path))
    with torch.no_grad():
        model(**tiny_inputs(model))
    places = [order.index(part.path) for part in DENOISER.anatomy(model).parts]
    assert places == sorted(places)


@pytest.mark.parametrize("family", SD3)
def test_every_attention_feed_forward_and_block_is_a_part(family):
    model = tiny_sd3(family)
    parts = DENOISER.anatomy(model).parts
    names: dict[str, set[str]] = {}
    for path, module in model.named_modules():
        names.setdefault(type(module).__name__, set()).add(path)
    of_kind = {kind: {part.path for part in parts if part.kind == kind} for kind in {part.kind for part in parts}}
    assert of_kind["joint_attention_heads"] | of_kind.get("attention_heads", set()) == names["Attention"]
    assert of_kind.get("attention_heads", set()) == {path for path in names["Attention"] if path.endswith("attn2")}
    assert of_kind["feedforward_units"] == names["FeedForward"]
    assert of_kind["block"] == names["JointTransformerBlock"] == set(DENOISER.anatomy(model).last_blocks)


def test_one_unit_is_a_head_of_both_streams():
    model = tiny_sd3(num_layers=2)
    first, last = (part for part in DENOISER.anatomy(model).parts if part.kind == "joint_attention_heads")
    path = "transformer_blocks.0.attn"
    assert first.units == model.config.num_attention_heads
    assert first.taps == (f"{path}.to_out.0", f"{path}.to_add_out")
    assert {cut.path.rpartition(".")[2] for cut in first.cuts if cut.side == "out"} == {
        *("to_q", "to_k", "to_v"),
        *("add_q_proj", "add_k_proj", "add_v_proj"),
    }
    assert last.taps == ("transformer_blocks.1.attn.to_out.0",)  # the text goes no further


@pytest.mark.parametrize("family", SD3)
@given(skipped=st.sets(st.integers(0, 2)))
def test_dropped_blocks_are_those_that_diffusers_itself_would_skip(family, skipped):
    """Of both streams, and the last block, in which the text ends, among them."""
    model = tiny_sd3(family)
    inputs, space = tiny_inputs(model, 2), aptp.search_space(model, "depth")
    gates = torch.tensor([float(index not in skipped) for index in range(3)])
    with torch.no_grad():
        expected = model(**inputs, skip_layers=list(skipped)).sample
        sliced = aptp.slice(model, space, aptp.Architecture(space, gates))
        assert torch.equal(sliced(**inputs).sample, expected)
        with aptp.gated(model, space, gates):
            torch.testing.assert_close(model(**inputs).sample, expected)


def test_a_half_open_block_mixes_both_streams():
    model, seen = tiny_sd3().double(), {}
    block = model.transformer_blocks[1]
    tokens = {"hidden_states": 16, "encoder_hidden_states": 5}
    entering = {name: torch.randn(2, count, 24, dtype=torch.float64) for name, count in tokens.items()}
    space, temb = aptp.search_space(model, "depth"), torch.randn(2, 24).double()
    text, image = block(**entering, temb=temb)
    gates = torch.tensor([[1, 0.25, 1], [1, 0.5, 1]]).double()
    share = gates[:, 1].view(2, 1, 1)
    with aptp.gated(model, space, gates):
        for call in (lambda: block(**entering, temb=temb), lambda: block(*entering.values(), temb)):
            seen["text"], seen["image"] = call()
            torch.testing.assert_close(seen["image"], entering["hidden_states"].lerp(image, share))
            torch.testing.assert_close(seen["text"], entering["encoder_hidden_states"].lerp(text, share))


def test_gradient_checkpointing_is_gated_alike():
    model = tiny_sd3("sd3.5").double()
    space, inputs = tiny_space(model), tiny_inputs(model, 2, torch.float64)
    gates = torch.rand(2, space.num_gates, dtype=torch.float64, requires_grad=True)
    slopes = []
    for checkpointed in (False, True):
        if checkpointed:
            model.train().enable_gradient_checkpointing()
        with aptp.gated(model, space, gates):
            output = model(**inputs).sample.square().mean()
            slopes.append(torch.autograd.grad(output, gates)[0])
    torch.testing.assert_close(*slopes)


@given(seed=st.integers(0, 1000))
def test_an_expert_takes_a_control_net_s_residuals(seed):
    model = tiny_sd3().double()
    space, inputs = tiny_space(model), tiny_inputs(model, 2, torch.float64)
    inputs["block_controlnet_hidden_states"] = [torch.randn(2, 16, 24).double() for _ in range(3)]
    architecture = aptp.Architecture.random(space, 0.4, seed)
    with torch.no_grad():
        sliced = aptp.slice(model, space, architecture)(**inputs).sample
        with aptp.gated(model, space, architecture.gates):
            torch.testing.assert_close(model(**inputs).sample, sliced)


@pytest.mark.parametrize("family", SD3)
def test_predict_is_the_model_s_own_answer(family):
    model = tiny_sd3(family)
    inputs = tiny_inputs(model, 2)
    text = {name: inputs[name] for name in ("encoder_hidden_states", "pooled_projections")}
    with torch.no_grad():
        predicted = DENOISER.predict(model, inputs["hidden_states"], inputs["timestep"], text)
        assert torch.equal(predicted, model(**inputs).sample)


def test_what_it_supports():
    assert DENOISER.supports(tiny_sd3())
    assert not DENOISER.supports(tiny_unet())
    assert not DENOISER.supports(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4))


def test_blocks_of_another_kind_are_refused():
    model = tiny_sd3()
    model.transformer_blocks[1] = SD3SingleTransformerBlock(24, 4, 6)
    with pytest.raises(RequestError, match=r"'transformer_blocks\.1'.* SD3SingleTransformerBlock"):
        DENOISER.anatomy(model)


@pytest.fixture(scope="module", params=["without T5", "with T5"])
def pipeline(request, sd3_folder) -> StableDiffusion3Pipeline:
    pipeline = load_pipeline(str(sd3_folder), torch.device("cpu"))
    if request.param == "with T5":
        words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁red", -2.0), ("▁star", -2.0)]
        config = T5Config(vocab_size=len(words), d_model=32, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
        pipeline.register_modules(
            text_encoder_3=T5EncoderModel(config).eval(), tokenizer_3=T5Tokenizer(words, extra_ids=0)
        )
    return pipeline


@torch.no_grad()
def test_prompts_are_conditioned_as_its_own_pipeline_does_under_guidance(pipeline):
    mine = [DENOISER.encode_text(pipeline, ["a red star", "a"], 8), DENOISER.unconditional(pipeline, 8)]
    hidden, nothing, pooled, pooled_nothing = pipeline.encode_prompt(["a red star", "a"], None, None)
    assert torch.equal(mine[0]["encoder_hidden_states"], hidden)
    assert torch.equal(mine[0]["pooled_projections"], pooled)
    torch.testing.assert_close(mine[1]["encoder_hidden_states"], nothing[:1])
    torch.testing.assert_close(mine[1]["pooled_projections"], pooled_nothing[:1])
    tokens = pipeline.tokenizer.model_max_length
    assert hidden.shape == (2, tokens + 256, 32)  # CLIP's tokens, then those of T5 or as many zeros
    assert bool((hidden[:, tokens:] == 0).all()) is (pipeline.text_encoder_3 is None)


def test_an_expert_draws_in_the_stock_pipeline_what_the_gated_model_draws(pipeline, tmp_path):
    dense = pipeline.transformer
    space = tiny_space(dense)
    architecture = aptp.Architecture.random(space, 0.6, seed=1)
    save_expert(aptp.slice(dense, space, architecture), architecture, tmp_path / "00")
    expert = aptp.load_expert(tmp_path / "00")
    assert any(isinstance(module, PassThrough) for module in expert.modules())
    stock = StableDiffusion3Pipeline(**{**pipeline.components, "transformer": expert})
    stock.set_progress_bar_config(disable=True)

    def draw(pipe):
        noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        options = {"num_inference_steps": 3, "output_type": "latent", "generator": noise}
        return pipe(["a red star", "a"], guidance_scale=4.0, **options).images

    with aptp.gated(dense, space, architecture.gates):
        gated = draw(pipeline)
    torch.testing.assert_close(draw(stock), gated, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(pipeline), gated, rtol=1e-2)
