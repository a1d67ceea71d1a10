"""The shapes of the embedded pipeline's parts, and how a pipeline is put together from trained states."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import ASSETS, publish
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from train_tokenizer import TOKENS, tokenizer
from train_vae import autoencoder
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS = (32, 64, 96)
TEXT_WIDTH = 128


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=2,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(width // 16 for width in WIDTHS),  # diffusers means the number of heads: 16 wide each
        use_linear_projection=True,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas rescaled to end in pure noise, so that plain grounds get their true colour."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def trained_vae(work: Path) -> AutoencoderKL:
    """The autoencoder of the last checkpoint; before any training, a fresh one."""
    vae = autoencoder()
    if (work / "vae.pt").exists():
        vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["model"])
    return vae.eval().requires_grad_(False)


def publish_pipeline(work: Path, target: Path = ASSETS / "tiny") -> None:
    """Write the averaged weights of the last checkpoint as a diffusers pipeline in half precision."""
    words = tokenizer(work)
    denoiser, encoder, vae = unet(), text_encoder(len(words)), trained_vae(work)
    if (work / "unet.pt").exists():
        average = torch.load(work / "unet.pt", weights_only=True)["average"]
        denoiser.load_state_dict({k[5:]: v for k, v in average.items() if k.startswith("unet.")})
        encoder.load_state_dict({k[5:]: v for k, v in average.items() if k.startswith("text.")})
    if (work / "latents.safetensors").exists():
        with safe_open(work / "latents.safetensors", "pt") as file:
            vae.register_to_config(scaling_factor=json.loads(file.metadata()["scaling_factor"]))
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=encoder.half(),
        tokenizer=words,
        unet=denoiser.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = work / "tiny.new"
    pipeline.save_pretrained(folder)
    publish(folder, target)
