"""Whole runs on small random checkpoints of every family, laid out as the families' own are on the hub."""

from __future__ import annotations

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
from aptp.config import load_config
from aptp.core.errors import RequestError
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.core.slicing import slice
from aptp.harness import plan, run
from aptp.harness.workspace import Workspace
from aptp.host import default_host
from aptp.models import load_pipeline
from aptp.testing import tiny_pixart, tiny_unet

WORDS = {"vocab_size": 0, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
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


def t5() -> dict[str, Any]:
    """A tokenizer of single letters, and an encoder."""
    special, letters = ["<pad>", "</s>", "<unk>", "▁"], string.ascii_letters + string.digits + ",.?!'\"-"
    tokenizer = T5Tokenizer([(piece, 0.0) for piece in [*special, *letters]], extra_ids=0, model_max_length=512)
    config = T5Config(vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config)}


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
        unet=tiny_unet("sd1", cross_attention_dim=8),
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
        unet=tiny_unet("sd2", cross_attention_dim=8),
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
        unet=tiny_unet("sdxl", cross_attention_dim=16),
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


CHECKPOINTS: dict[str, Callable[..., DiffusionPipeline]] = {
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma,
}
NAMED_ON_THE_HUB = {"feature_extractor": "CLIPImageProcessor", "tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}


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
def config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    flags = {
        "model": str(checkpoint),
        "data": {"name": "scenes", "train": 20, "validation": 10},
        "encoder": {"name": "minilm", "max_tokens": 24},
        "budget": 0.7,
        "experts": 2,
        "prepare.cache": str(tmp_path_factory.mktemp("cache")),
        "search": {"steps": 4, "batch": 4},
        "recover": {"steps": 4, "batch": 4, "caption_dropout": 0.5},
        "evaluate": {"prompts": 4, "steps": 2, "batch": 4, "gallery": 1},
        "compare": ["magnitude"],
    }
    return load_config(flags=flags).resolved(default_host())


@pytest.fixture(scope="module")
def done(config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("done") / "run"
    return out, run(config, out, host=default_host(), progress=Quiet())


@pytest.mark.slow
def test_a_whole_run(done, family: str) -> None:
    _, record = done
    assert record.status == "done"
    assert [result.name for result in record.results] == ["dense", "contrastive+sinkhorn", "magnitude"]
    assert record.budget.expected == pytest.approx(0.7, abs=0.02)
