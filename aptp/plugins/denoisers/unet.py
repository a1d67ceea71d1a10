"""UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from aptp.core import anatomy
from aptp.core.anatomy import Anatomy, Part
from aptp.core.denoiser import Denoiser, TextStates
from aptp.core.errors import RequestError
from aptp.plugins.denoisers._transformer import width_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ORDER = ("down_blocks", "mid_block", "up_blocks")


class UNetDenoiser(Denoiser):
    """Width: every ResNet block, attention and feed-forward.

    Depth: ResNet blocks that keep their width, whole attention modules, and, where a module has several transformer
    blocks, the single blocks instead.
    """

    component = "unet"

    @classmethod
    def supports(cls, module: nn.Module) -> bool:
        return isinstance(module, UNet2DConditionModel)

    def anatomy(self, module: UNet2DConditionModel) -> Anatomy:
        parts = [part for stage in self.blocks(module) for part in _walk(module, stage)]
        return Anatomy(tuple(parts), tuple(_last_blocks(parts)))

    def blocks(self, module: UNet2DConditionModel) -> Sequence[str]:
        stages = {name: getattr(module, name) for name in _ORDER}
        return [
            path
            for name, stage in stages.items()
            if stage is not None
            for path in ([f"{name}.{i}" for i in range(len(stage))] if isinstance(stage, nn.ModuleList) else [name])
        ]

    def example_inputs(self, module: UNet2DConditionModel, sample_size: int, text_tokens: int) -> dict[str, Tensor]:
        config, device, dtype = module.config, module.device, module.dtype
        inputs = {
            "sample": torch.zeros(1, config.in_channels, sample_size, sample_size, device=device, dtype=dtype),
            "timestep": torch.ones(1, device=device, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(1, text_tokens, _text_width(config), device=device, dtype=dtype),
        }
        if config.addition_embed_type == "text_time":
            ids = 6
            pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
            inputs["added_cond_kwargs"] = {
                "text_embeds": torch.zeros(1, pooled, device=device, dtype=dtype),
                "time_ids": torch.zeros(1, ids, device=device, dtype=dtype),
            }
        return inputs

    def encode_text(self, pipeline: DiffusionPipeline, prompts: Sequence[str], sample_size: int) -> dict[str, Tensor]:
        encoded = pipeline.encode_prompt(
            prompt=list(prompts),
            device=pipeline.text_encoder.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        if len(encoded) == 2:
            return {"encoder_hidden_states": encoded[0]}
        hidden, _, pooled, _ = encoded
        size = float(sample_size * pipeline.vae_scale_factor)
        time_ids = torch.tensor([[size, size, 0.0, 0.0, size, size]], dtype=hidden.dtype, device=hidden.device)
        return {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": time_ids.repeat(len(hidden), 1)}

    def unconditional(self, pipeline: DiffusionPipeline, sample_size: int) -> dict[str, Tensor]:
        text = self.encode_text(pipeline, [""], sample_size)
        if not pipeline.config.get("force_zeros_for_empty_prompt", False):
            return text
        return {name: states if name == "time_ids" else torch.zeros_like(states) for name, states in text.items()}

    def predict(self, module: nn.Module, latents: Tensor, timesteps: Tensor, text: TextStates) -> Tensor:
        added = {name: value for name, value in text.items() if name != "encoder_hidden_states"}
        return module(
            latents,
            timesteps,
            encoder_hidden_states=text["encoder_hidden_states"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]


def _text_width(config) -> int:
    width = config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def _walk(unet: nn.Module, stage: str) -> Iterator[Part]:
    """The parts of one stage in the order in which it runs them: each ResNet block, then the attention beside it."""
    module = unet.get_submodule(stage)
    attentions = getattr(module, "attentions", [])
    for index, resnet in enumerate(getattr(module, "resnets", [])):
        path = f"{stage}.resnets.{index}"
        _check(path, resnet, ResnetBlock2D)
        inside = (path,) if _passes_on(unet, stage, index, resnet) else ()
        if inside:
            yield anatomy.block(path, resnet.conv2.out_channels)
        yield anatomy.resnet_channels(path, resnet, inside)
        if index < len(attentions) and attentions[index] is not None:
            yield from _attention(f"{stage}.attentions.{index}", attentions[index])


def _passes_on(unet: nn.Module, stage: str, index: int, resnet: ResnetBlock2D) -> bool:
    """Whether the block's input starts with a hidden state as wide as its output.

    In an up block the input is `[hidden, skip]`, and the first block's `hidden` has the width of the stage before.
    """
    if resnet.up or resnet.down:
        return False
    if not stage.startswith("up_blocks"):
        return resnet.in_channels == resnet.out_channels
    widths, number = unet.config.block_out_channels[::-1], int(stage.rsplit(".", 1)[1])
    return index > 0 or widths[max(number - 1, 0)] == widths[number]


def _attention(path: str, module: Transformer2DModel) -> Iterator[Part]:
    _check(path, module, Transformer2DModel)
    several = len(module.transformer_blocks) > 1
    whole: tuple[str, ...] = ()
    if not several:
        yield anatomy.block(path, module.config.in_channels)
        whole = (path,)
    for index, transformer in enumerate(module.transformer_blocks):
        name, inside = f"{path}.transformer_blocks.{index}", whole
        if several:
            yield anatomy.block(name, 0)
            inside = (name,)
        yield from width_of(name, transformer, inside)


def _check(path: str, module: nn.Module, known: type[nn.Module]) -> None:
    if not isinstance(module, known):
        raise RequestError(
            f"{path!r} of this U-Net is a {type(module).__name__}, which cannot be gated; Stable Diffusion's are "
            f"{known.__name__}s."
        )


def _last_blocks(parts: Sequence[Part]) -> Iterator[str]:
    """The last ResNet block and the last attention block of each down and up stage; the mid block keeps its own."""
    last: dict[str, str] = {}
    for part in parts:
        if part.is_block and not part.path.startswith("mid_block"):
            stage, kind = part.path.split(".")[:2], part.path.split(".")[2]
            last[".".join((*stage, kind))] = part.path
    yield from last.values()
