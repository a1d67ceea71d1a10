"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from aptp.core import anatomy
from aptp.core.anatomy import Anatomy, Part
from aptp.core.denoiser import Denoiser, TextStates
from aptp.core.errors import RequestError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

STREAMS = ("encoder_hidden_states", "hidden_states")
"""What a joint block takes and answers with, in the order of its answer: the text's stream and the image's."""


class SD3Denoiser(Denoiser):
    """Width: the heads of every joint attention, of the image's own where a block has one too (3.5), and the
    feed-forwards of both streams.

    Depth: every block. The text's stream ends in the last one, and nothing reads it behind that, so the last block can
    go as well: the image's stream passes it by.
    """

    component = "transformer"

    @classmethod
    def supports(cls, module: nn.Module) -> bool:
        return isinstance(module, SD3Transformer2DModel)

    def anatomy(self, module: SD3Transformer2DModel) -> Anatomy:
        paths = self.blocks(module)
        parts = (part for path in paths for part in _walk(path, module.get_submodule(path)))
        return Anatomy(tuple(parts), tuple(paths))

    def blocks(self, module: SD3Transformer2DModel) -> Sequence[str]:
        return [f"transformer_blocks.{index}" for index in range(len(module.transformer_blocks))]

    def required(self, pipeline: DiffusionPipeline) -> Sequence[str]:
        """The third text encoder, T5, may be missing with its tokenizer: the pipeline puts zeros for its tokens."""
        third = {"text_encoder_3", "tokenizer_3"}
        missing = third if pipeline.text_encoder_3 is None else set()
        return [name for name in super().required(pipeline) if name not in missing]

    def example_inputs(self, module: SD3Transformer2DModel, sample_size: int, text_tokens: int) -> dict[str, Tensor]:
        config, like = module.config, {"device": module.device, "dtype": module.dtype}
        return {
            "hidden_states": torch.zeros(1, config.in_channels, sample_size, sample_size, **like),
            "timestep": torch.ones(1, device=module.device, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, **like),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim, **like),
        }

    def encode_text(self, pipeline: DiffusionPipeline, prompts: Sequence[str], sample_size: int) -> dict[str, Tensor]:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

    def predict(self, module: nn.Module, latents: Tensor, timesteps: Tensor, text: TextStates) -> Tensor:
        return module(hidden_states=latents, timestep=timesteps, return_dict=False, **text)[0]


def _walk(path: str, block: JointTransformerBlock) -> Iterator[Part]:
    """The parts of one block in the order in which it runs them."""
    if not isinstance(block, JointTransformerBlock):
        raise RequestError(
            f"{path!r} of this transformer is a {type(block).__name__}, which cannot be gated; Stable Diffusion 3's "
            "are JointTransformerBlocks."
        )
    inside = (path,)
    yield anatomy.block(path, 0, streams=STREAMS)
    yield anatomy.joint_attention_heads(f"{path}.attn", block.attn, inside)
    if block.attn2 is not None:
        yield anatomy.attention_heads(f"{path}.attn2", block.attn2, inside)
    yield anatomy.feedforward_units(f"{path}.ff", block.ff, inside)
    if block.ff_context is not None:
        yield anatomy.feedforward_units(f"{path}.ff_context", block.ff_context, inside)
