"""A denoiser family: its anatomy, and how it is called, conditioned and trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from aptp.core.anatomy import Anatomy
from aptp.core.errors import RequestError
from aptp.core.objective import Diffused, diffuse

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TextStates = Mapping[str, Tensor]
"""What a denoiser is conditioned on, by the name of the argument that takes it; each [batch, …]."""


class Denoiser(ABC):
    """One a family of diffusers models; stateless, the model is handed in."""

    component: ClassVar[str]
    """The attribute of a diffusers pipeline that holds the model: `"unet"` or `"transformer"`."""
    call_options: ClassVar[Mapping[str, bool | int | float | None]] = {}
    """What calls of the family's pipeline are given beside prompts, noise, steps and guidance, unless asked else.

    They travel with bundles, which are held to numbers of at most 1,024."""

    @classmethod
    @abstractmethod
    def supports(cls, module: nn.Module) -> bool:
        """Whether `module` is of this family."""

    def required(self, pipeline: DiffusionPipeline) -> Sequence[str]:
        """What a pipeline must have beside the denoiser: among it all text encoders that it has a place for."""
        texts = (name for name in pipeline.components if name.startswith(("text_encoder", "tokenizer")))
        return ["vae", "scheduler", *texts]

    def sample_size(self, module: nn.Module) -> int:
        """Height and width of the latents that `module` was trained on, in which it is pruned and served.

        Raises:
            RequestError: if its config does not say so in one number.
        """
        size = getattr(module.config, "sample_size", None)
        if not isinstance(size, int):
            raise RequestError(
                f"this {type(module).__name__} has sample size {size!r}; one number, for a square, is right."
            )
        return size

    @abstractmethod
    def anatomy(self, module: nn.Module) -> Anatomy:
        """All parts of `module` that could be gated."""

    @abstractmethod
    def example_inputs(self, module: nn.Module, sample_size: int, text_tokens: int) -> dict[str, Tensor]:
        """Keyword arguments for one input on the model's own device.

        Args:
            sample_size: height and width of the latents.
            text_tokens: length of the encoded prompt.
        """

    @abstractmethod
    def blocks(self, module: nn.Module) -> Sequence[str]:
        """Paths of the blocks whose outputs block distillation compares."""

    @abstractmethod
    def encode_text(self, pipeline: DiffusionPipeline, prompts: Sequence[str], sample_size: int) -> dict[str, Tensor]:
        """The text states of prompts, by the names that `predict` passes on; batch first."""

    def unconditional(self, pipeline: DiffusionPipeline, sample_size: int) -> dict[str, Tensor]:
        """One row of text states: what the pipeline itself puts beside a prompt under classifier-free guidance."""
        return self.encode_text(pipeline, [""], sample_size)

    @abstractmethod
    def predict(
        self,
        module: nn.Module,
        latents: Float[Tensor, "batch channels height width"],
        timesteps: Num[Tensor, "batch"],
        text: TextStates,
    ) -> Float[Tensor, "batch channels height width"]:
        """The model's output for noisy latents; `timesteps` are those that `diffuse` answered."""

    def diffuse(self, scheduler, latents: Tensor, noise: Tensor, timesteps: Int[Tensor, "batch"]) -> Diffused:
        """Noisy input, target and loss weight for training, by what the scheduler predicts (ε, v or flow)."""
        return diffuse(scheduler, latents, noise, timesteps)
