"""Whole runs on small random checkpoints of every family, laid out as the families' own are on the hub."""

from __future__ import annotations

import inspect
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import aptp
from aptp.api import denoiser_of
from aptp.config import AdaptOptions, load_config
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run
from aptp.harness.adapt import adapt
from aptp.harness.workspace import Workspace
from aptp.host import default_host
from aptp.models import fingerprint, load_pipeline
from aptp.pipeline import RoutedPipeline
from aptp.testing import tiny_pixart, tiny_sd3, tiny_unet

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DRAWING = {"num_inference_steps": 3, "guidance_scale": 3.0}
PROMPTS = ["a red star", "the word STOP", "a blue dot left of a star"]


def clip(tokenizer, kind: type = CLIPTextModel, **config: Any):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )


PIECES = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *",.?!'\"-"]


def t5(place: str = "", width: int = 12) -> dict[str, Any]:
    """A tokenizer of single letters, and an encoder, for the place that a pipeline has for them."""
    tokenizer = T5Tokenizer([(piece, 0.0) for piece in PIECES], extra_ids=0, model_max_length=512)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return {f"tokenizer{place}": tokenizer, f"text_encoder{place}": T5EncoderModel(config)}


def vae(levels: int = 2, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels,
        norm_num_groups=2,
        layers_per_block=1,
        mid_block_add_attention=False,
        **config,
    )


def sd15(tokenizer) -> DiffusionPipeline:
    """With a safety checker, ε."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet("sd1", cross_attention_dim=8, layers_per_block=1),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **NOISE),
        safety_checker=StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)),
        feature_extractor=CLIPImageProcessorPil(),
    )


def sd21(tokenizer) -> DiffusionPipeline:
    """v."""
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer, hidden_act="gelu"),
        tokenizer=tokenizer,
        unet=tiny_unet("sd2", cross_attention_dim=8, layers_per_block=1),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1, **NOISE),
        safety_checker=None,
        feature_extractor=CLIPImageProcessorPil(),
        requires_safety_checker=False,
    )


def sdxl(tokenizer) -> DiffusionPipeline:
    """Two text encoders, zeros for no prompt."""
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip(tokenizer),
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, projection_dim=8, hidden_act="gelu"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=tiny_unet("sdxl", cross_attention_dim=16, layers_per_block=1),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **NOISE),
        force_zeros_for_empty_prompt=True,
    )


def pixart_alpha(_tokenizer) -> DiffusionPipeline:
    """In the size at which α is told resolution and aspect ratio."""
    return diffusers.PixArtAlphaPipeline(
        vae=vae(1),
        transformer=tiny_pixart("pixart-alpha", sample_size=128, patch_size=16),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        **t5(),
    )


def pixart_sigma(_tokenizer) -> DiffusionPipeline:
    return diffusers.PixArtSigmaPipeline(
        vae=vae(scaling_factor=0.13025),
        transformer=tiny_pixart("pixart-sigma"),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        **t5(),
    )


def sd35(tokenizer) -> DiffusionPipeline:
    """Three text encoders, T5 among them; flow."""
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection, projection_dim=8),
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, projection_dim=8, hidden_act="gelu"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        transformer=tiny_sd3(
            "sd3.5", in_channels=16, out_channels=16, joint_attention_dim=16, pooled_projection_dim=16
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **t5("_3", width=16),
    )


CHECKPOINTS: dict[str, Callable[..., DiffusionPipeline]] = {
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma,
    "sd35": sd35,
}
SETTINGS = {"pixart-alpha": {"adapt": {"steps": 1, "batch": 2}}}
"""What runs of a checkpoint do beside the rest: α's denoiser and encoder are fine-tuned and saved first."""
NAMED_ON_THE_HUB = {
    "feature_extractor": "CLIPImageProcessor",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
}


def as_on_the_hub(name: str, folder: Path) -> None:
    """Give parts the names of classes that the published folders have, where this library writes newer ones."""
    index = json.loads((folder / "model_index.json").read_text())
    if name == "pixart-alpha":
        index["transformer"] = ["diffusers", "Transformer2DModel"]
        config = json.loads((folder / "transformer/config.json").read_text())
        (folder / "transformer/config.json").write_text(json.dumps({**config, "_class_name": "Transformer2DModel"}))
    if name.startswith("sd"):
        for part, written in NAMED_ON_THE_HUB.items():
            if index.get(part, [None])[0]:
                index[part] = ["transformers", written]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module", params=CHECKPOINTS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, small_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / family
    CHECKPOINTS[family](small_tokenizer).save_pretrained(folder)
    as_on_the_hub(family, folder)
    return folder


@pytest.fixture(scope="module")
def config(checkpoint: Path, family: str, tmp_path_factory: pytest.TempPathFactory):
    flags = {
        "model": str(checkpoint),
        "data": {"name": "scenes", "train": 20, "validation": 10},
        "encoder": {"name": "minilm", "max_tokens": 24},
        "budget": 0.7,
        "experts": 2,
        "prepare.cache": str(tmp_path_factory.mktemp("cache")),
        "search": {"steps": 4, "batch": 4},
        "recover": {"steps": 4, "batch": 4, "caption_dropout": 0.5},
        "metrics": ["cmmd"],
        "evaluate": {"prompts": 4, "steps": 2, "batch": 4, "gallery": 1},
        "compare": ["magnitude"],
        **SETTINGS.get(family, {}),
    }
    return load_config(flags=flags).resolved(default_host())


@pytest.fixture(scope="module")
def done(config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("done") / "run"
    return out, run(config, out, host=default_host(), progress=Quiet())


@pytest.fixture(scope="module")
def pipe(done) -> RoutedPipeline:
    return aptp.load(done[0], device="cpu")


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in images])


def noise(count: int = len(PROMPTS)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.slow
def test_a_whole_run(done, checkpoint: Path) -> None:
    out, record = done
    assert record.status == "done"
    assert [result.name for result in record.results] == ["dense", "contrastive+sinkhorn", "magnitude"]
    assert record.budget.expected == pytest.approx(0.7, abs=0.02)
    module = load_pipeline(str(checkpoint), torch.device("cpu"))
    module = getattr(module, "unet", None) or module.transformer
    for folder in (*(out / f"experts/{i:02d}" for i in range(2)), out / "baselines/magnitude/experts/00"):
        expert = aptp.load_expert(folder)
        assert type(expert) is type(module)
        assert sum(p.numel() for p in expert.parameters()) < sum(p.numel() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("negative", [None, ["", "grey", "a blue dot"]], ids=str)
def test_experts_draw_what_they_draw_in_the_stock_pipeline(pipe: RoutedPipeline, done, negative) -> None:
    asked = {} if negative is None else {"negative_prompt": negative}
    drawn = pipe(PROMPTS, seed=range(3), experts=[0, 1, 0], batch_size=3, **asked, **DRAWING)
    options, component = pipe.bundle.call_options, pipe.bundle.component
    for i in (0, 1):
        setattr(pipe.base, component, aptp.load_expert(done[0] / f"experts/{i:02d}"))
        images = pipe.base(PROMPTS, generator=noise(), **asked, **DRAWING, **options).images
        setattr(pipe.base, component, pipe.dense)
        mine = [place for place, expert in enumerate(drawn.experts) if expert == i]
        found, expected = (pixels([pictures[place] for place in mine]) for pictures in (drawn.images, images))
        assert np.abs(found - expected).max() <= 1
    assert not np.array_equal(*pixels(drawn.images[:2]))


@pytest.mark.slow
def test_a_negative_prompt_counts_and_empty_prompts_are_refused(pipe: RoutedPipeline) -> None:
    plain, negative = (
        pipe(PROMPTS, experts=[0] * 3, negative_prompt=text, output_type="np", **DRAWING).images
        for text in (None, "a blue dot")
    )
    assert not np.array_equal(plain, negative)
    with pytest.raises(RequestError, match="prompt 2 is empty"):
        pipe(["a red star", ""], **DRAWING)
    with pytest.raises(RequestError, match="negative_prompt has 2 entries; one a prompt is right, 3 in all"):
        pipe(PROMPTS, negative_prompt=["a", "b"], **DRAWING)


@pytest.mark.slow
def test_training_conditions_as_the_stock_pipeline_does(pipe: RoutedPipeline) -> None:
    """Under guidance the pipeline itself calls its denoiser with the states of a dropped caption and of the prompts."""
    module, denoiser = pipe.dense, denoiser_of(pipe.dense)
    calls: list[tuple[dict, torch.Tensor]] = []

    def hook(_module, args, kwargs, output) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        named = dict(zip(names, args, strict=False)) | kwargs
        calls.append((named | (named.pop("added_cond_kwargs", None) or {}), output[0]))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    pipe(PROMPTS, seed=range(3), dense=True, **DRAWING)
    handle.remove()
    called, answer = calls[0]
    size = denoiser.sample_size(module)
    with torch.no_grad():
        nothing, text = denoiser.unconditional(pipe.base, size), denoiser.encode_text(pipe.base, PROMPTS, size)
        both = {name: torch.cat([nothing[name].expand_as(states), states]) for name, states in text.items()}
        for name, states in both.items():
            torch.testing.assert_close(called[name].to(states), states, msg=name)  # encoded in another batch
        latents = called["sample"] if "sample" in called else called["hidden_states"]
        predicted = denoiser.predict(module, latents, called["timestep"].expand(6), both)
    assert predicted.shape == latents.shape
    torch.testing.assert_close(predicted, answer[:, : latents.shape[1]])


@pytest.mark.slow
def test_adaptation_trains_the_denoiser_and_every_text_encoder(config, tmp_path: Path) -> None:
    def fingerprints() -> dict[str, str]:
        parts = work.pipeline.components.items()
        return {name: fingerprint(part) for name, part in parts if isinstance(part, torch.nn.Module)}

    config = config.model_copy(update={"adapt": AdaptOptions(steps=1, batch=2, rate=1e-2)})
    record = Record(started="", config={}, versions={}, hardware={})
    work = Workspace.open(config, tmp_path, default_host(), Quiet(), record)
    before = fingerprints()
    adapt(work, work.chosen.train[:4], "four")
    trained = {name for name, found in fingerprints().items() if found != before[name]}
    assert trained == {work.denoiser.component, *(name for name in before if name.startswith("text_encoder"))}
    assert work.preparer.pipeline is work.pipeline  # what follows sees the adapted model


@pytest.mark.slow
def test_text_states_are_cached_with_all_that_goes_with_them(config, pipe: RoutedPipeline, tmp_path: Path) -> None:
    record = Record(started="", config={}, versions={}, hardware={})
    work = Workspace.open(config, tmp_path, default_host(), Quiet(), record)
    captions = sorted({sample.caption for sample in work.chosen.train})
    first, again = (work.preparer.text(captions, "training").whole() for _ in range(2))
    fresh = work.denoiser.encode_text(work.pipeline, captions, work.sample_size)
    assert first.keys() == again.keys() == fresh.keys()
    for name, states in fresh.items():
        torch.testing.assert_close(first[name], states.float())
        assert torch.equal(first[name], again[name])
    short = work.preparer.text(["a star"], "one").whole()
    alone = work.denoiser.encode_text(work.pipeline, ["a star", captions[0]], work.sample_size)
    for name, states in short.items():
        torch.testing.assert_close(states[0], alone[name][0].float(), msg=f"{name} depends on its batch")


def test_t5_s_tokenizer_may_be_a_sentencepiece_file_alone(tmp_path: Path) -> None:
    """As in PixArt's own folders."""
    format = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="the extra aptp[t5] is not installed")
    pixart_sigma(None).save_pretrained(tmp_path)
    before = load_pipeline(str(tmp_path), torch.device("cpu"))
    proto = format.ModelProto(
        trainer_spec={"model_type": "UNIGRAM", "unk_id": 2, "eos_id": 1, "pad_id": 0, "bos_id": -1}
    )
    kinds = {"<pad>": "CONTROL", "</s>": "CONTROL", "<unk>": "UNKNOWN"}
    for piece in PIECES:
        proto.pieces.add(piece=piece, score=0.0, type=kinds.get(piece, "NORMAL"))
    (tmp_path / "tokenizer/tokenizer.json").unlink()
    (tmp_path / "tokenizer/spiece.model").write_bytes(proto.SerializeToString())
    after = load_pipeline(str(tmp_path), torch.device("cpu"))
    text = [denoiser_of(pipe.transformer).encode_text(pipe, PROMPTS, 8) for pipe in (before, after)]
    assert torch.equal(text[0]["encoder_hidden_states"], text[1]["encoder_hidden_states"])
    assert torch.equal(text[0]["encoder_attention_mask"], text[1]["encoder_attention_mask"])


MANY = [f"{number} {colour} dots" for number in range(1, 9) for colour in ("red", "blue", "grey", "green")]
EXPERTS = [(3 * place) % 7 % 3 - 1 for place in range(len(MANY))]
"""Two experts and the dense model (−1) in a mixed order."""


@pytest.mark.slow
def test_a_picture_does_not_depend_on_what_else_is_asked(pipe: RoutedPipeline) -> None:
    drawing = DRAWING | {"output_type": "np"}
    mixed = pipe(MANY, seed=range(32), experts=EXPERTS, **drawing).images
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist()
    permuted = pipe([MANY[i] for i in order], seed=order, experts=[EXPERTS[i] for i in order], **drawing).images
    assert np.abs(permuted - mixed[order]).max() <= 1e-4
    for place in (0, 5, 31):
        alone = pipe(MANY[place], seed=place, experts=[EXPERTS[place]], **drawing).images
        assert np.abs(alone[0] - mixed[place]).max() <= 1e-4
        assert np.abs(alone[0] - mixed[place - 1]).max() > 1e-3, "another picture is further off than rounding"


def embeddings(base: DiffusionPipeline, prompts: list[str]) -> dict[str, torch.Tensor]:
    """A prompt's text states and those of no prompt, by the names under which the pipeline takes them."""
    others = [prompts, prompts] if type(base).__name__ == "StableDiffusion3Pipeline" else []
    encoded = base.encode_prompt(
        prompts, *others, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    pooled = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    names = {
        "StableDiffusionPipeline": ["prompt_embeds", "negative_prompt_embeds"],
        "StableDiffusionXLPipeline": pooled,
        "StableDiffusion3Pipeline": pooled,
    }
    masked = ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"]
    return dict(zip(names.get(type(base).__name__, masked), encoded, strict=True))


@pytest.mark.slow
def test_text_states_are_divided_among_the_experts(pipe: RoutedPipeline) -> None:
    drawing = DRAWING | {"output_type": "np", "batch_size": 2, "num_images_per_prompt": 2, "experts": [0, 1, 0]}
    usual = pipe(PROMPTS, **drawing).images
    given = pipe(PROMPTS, **embeddings(pipe.base, PROMPTS), **drawing).images
    assert np.abs(given - usual).max() <= 1e-4


@pytest.mark.slow
def test_the_safety_checker_speaks_of_every_picture(
    pipe: RoutedPipeline, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = DRAWING | {"seed": range(6), "experts": [0, 1, -1, 1, 0, 0], "batch_size": 2, "output_type": "np"}
    if family != "sd15":
        assert pipe(MANY[:6], **drawing).nsfw_content_detected is None
        return

    def flag_the_bright(clip_input, images):
        return images, [bool((image / 2 + 0.5).clamp(0, 1).mean() > bound) for image in images]

    monkeypatch.setattr(pipe.base.safety_checker, "forward", flag_the_bright)
    bound = np.inf
    bright = pipe(MANY[:6], **drawing).images.mean((1, 2, 3))
    bound = np.median(bright)
    drawn = pipe(MANY[:6], **drawing)
    assert drawn.nsfw_content_detected == list(bright > bound)
    assert sum(drawn.nsfw_content_detected) == 3
    assert pipe(MANY[:2], experts=[0, 1], output_type="latent").nsfw_content_detected is None
