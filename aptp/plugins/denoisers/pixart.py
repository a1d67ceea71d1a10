"""PixArtTransformer2DModel: PixArt-α and PixArt-Σ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from aptp.core import anatomy
from aptp.core.anatomy import Anatomy, Part
from aptp.core.denoiser import Denoiser, TextStates
from aptp.plugins.denoisers._transformer import width_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SIZES = ("resolution", "aspect_ratio")
"""What α is told at 1024 pixels beside the text: height and width in pixels, and height over width."""


class PixArtDenoiser(Denoiser):
    """Width: the heads of self- and cross-attention and the feed-forward of every transformer block.

    Depth: every transformer block. A transformer has no stages, so each counts as the last of one.
    """

    component = "transformer"
    call_options: ClassVar = {"clean_caption": False, "use_resolution_binning": False}
    """Prompts are encoded as captions are in training, and pictures drawn in the size that the model was trained on."""

    @classmethod
    def supports(cls, module: nn.Module) -> bool:
        return isinstance(module, PixArtTransformer2DModel)

    def anatomy(self, module: PixArtTransformer2DModel) -> Anatomy:
        blocks = self.blocks(module)
        return Anatomy(tuple(part for path in blocks for part in _parts(module, path)), tuple(blocks))

    def blocks(self, module: PixArtTransformer2DModel) -> Sequence[str]:
        return [f"transformer_blocks.{index}" for index in range(len(module.transformer_blocks))]

    def example_inputs(self, module: PixArtTransformer2DModel, sample_size: int, text_tokens: int) -> dict[str, Tensor]:
        config, like = module.config, {"device": module.device, "dtype": module.dtype}
        width = config.caption_channels or config.cross_attention_dim
        inputs = {
            "hidden_states": torch.zeros(1, config.in_channels, sample_size, sample_size, **like),
            "encoder_hidden_states": torch.zeros(1, text_tokens, width, **like),
            "timestep": torch.ones(1, device=module.device, dtype=torch.long),
            "encoder_attention_mask": torch.ones(1, text_tokens, **like),
        }
        if module.use_additional_conditions:
            sizes = torch.zeros(1, 2, **like), torch.ones(1, 1, **like)
            inputs["added_cond_kwargs"] = dict(zip(SIZES, sizes, strict=True))
        return inputs

    def encode_text(self, pipeline: DiffusionPipeline, prompts: Sequence[str], sample_size: int) -> dict[str, Tensor]:
        hidden, mask, _, _ = pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=pipeline.text_encoder.device
        )
        text = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask.to(hidden)}
        if pipeline.transformer.use_additional_conditions:
            pixels = float(sample_size * pipeline.vae_scale_factor)
            sizes = hidden.new_full((len(hidden), 2), pixels), hidden.new_ones(len(hidden), 1)
            text |= dict(zip(SIZES, sizes, strict=True))
        return text

    def predict(self, module: nn.Module, latents: Tensor, timesteps: Tensor, text: TextStates) -> Tensor:
        answer = module(
            latents,
            timestep=timesteps,
            added_cond_kwargs={name: text[name] for name in SIZES if name in text} or None,
            return_dict=False,
            **{name: states for name, states in text.items() if name not in SIZES},
        )[0]
        return answer[:, : latents.shape[1]]  # what follows is a learned variance, which no sampler here uses


def _parts(module: nn.Module, path: str) -> Iterator[Part]:
    yield anatomy.block(path, 0)
    yield from width_of(path, module.get_submodule(path), (path,))
