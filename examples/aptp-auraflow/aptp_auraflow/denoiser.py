"""AuraFlowTransformer2DModel: first blocks of two streams, as Stable Diffusion 3's, then blocks of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import AuraFlowTransformer2DModel
from torch import Tensor, nn

from aptp.core import anatomy
from aptp.core.anatomy import FEEDFORWARD_BUNDLES, Anatomy, Cut, Part
from aptp.core.denoiser import Denoiser, TextStates
from aptp.core.options import Options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

STREAMS = ("encoder_hidden_states", "hidden_states")
"""What a joint block takes and answers with, in the order of its answer."""


class AuraFlowDenoiser(Denoiser):
    """Width: the heads of every attention, and the feed-forwards of both streams. Depth: every block."""

    class Options(Options):
        """Nothing to set."""

    component = "transformer"
    call_options: ClassVar = {"height": None, "width": None}
    """Pictures in the size that the model was trained on, which is not the pipeline's default."""

    @classmethod
    def supports(cls, module: nn.Module) -> bool:
        return isinstance(module, AuraFlowTransformer2DModel)

    def anatomy(self, module: AuraFlowTransformer2DModel) -> Anatomy:
        paths = self.blocks(module)
        return Anatomy(tuple(part for path in paths for part in _walk(path, module.get_submodule(path))), tuple(paths))

    def blocks(self, module: AuraFlowTransformer2DModel) -> Sequence[str]:
        lists = ("joint_transformer_blocks", "single_transformer_blocks")
        return [f"{name}.{index}" for name in lists for index in range(len(getattr(module, name)))]

    def example_inputs(
        self, module: AuraFlowTransformer2DModel, sample_size: int, text_tokens: int
    ) -> dict[str, Tensor]:
        config, like = module.config, {"device": module.device, "dtype": module.dtype}
        return {
            "hidden_states": torch.zeros(1, config.in_channels, sample_size, sample_size, **like),
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, **like),
            "timestep": torch.ones(1, **like),
        }

    def encode_text(self, pipeline: DiffusionPipeline, prompts: Sequence[str], sample_size: int) -> dict[str, Tensor]:
        states, *_ = pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=pipeline.text_encoder.device
        )
        return {"encoder_hidden_states": states}

    def predict(self, module: nn.Module, latents: Tensor, timesteps: Tensor, text: TextStates) -> Tensor:
        return module(latents, timestep=timesteps / 1000, return_dict=False, **text)[0]  # it is told σ itself


def _walk(path: str, block: nn.Module) -> Iterator[Part]:
    """The parts of one block in the order in which it runs them."""
    joint = hasattr(block, "ff_context")
    heads = anatomy.joint_attention_heads if joint else anatomy.attention_heads
    yield anatomy.block(path, 0, streams=STREAMS if joint else ())
    yield heads(f"{path}.attn", block.attn, (path,))
    yield _feedforward(f"{path}.ff", block.ff, path)
    if joint:
        yield _feedforward(f"{path}.ff_context", block.ff_context, path)


def _feedforward(path: str, layer: nn.Module, inside: str) -> Part:
    """The hidden units of a gated feed-forward that is not diffusers' own class: where they begin and end."""
    hidden = layer.out_projection.in_features
    bundles = next(n for n in range(FEEDFORWARD_BUNDLES, 0, -1) if hidden % n == 0)
    down = f"{path}.out_projection"
    cuts = (Cut(f"{path}.linear_1", "out"), Cut(f"{path}.linear_2", "out"), Cut(down, "in"))
    return Part(path, "feedforward_units", bundles, (down,), -1, cuts, hidden, (inside,))
