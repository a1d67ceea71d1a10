"""The exam of a run: held-out pictures, noised once, and what the dense model says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.harness.training import Example, generator_for

if TYPE_CHECKING:
    from aptp.harness.workspace import Workspace
    from aptp.pipeline import RoutedPipeline


@dataclass(frozen=True)
class Exam:
    """Noised validation latents and the dense model's answers; the same for every method of a run.

    `Workspace.exam` is drawn once a run: whoever compares experts with the dense model shares its pass over them.
    """

    work: Workspace
    index: Int[Tensor, "pictures"]
    """Their places in the validation split."""
    example: Example
    answer: Float[Tensor, "pictures channels height width"]

    @classmethod
    def draw(cls, work: Workspace) -> Exam:
        """At most `evaluate.exam` pictures, each noised to a random time."""
        generator = generator_for(work.config.seed, "teacher error")
        index = torch.randperm(len(work.validation), generator=generator)[: work.config.evaluate.exam]
        example = work.noiser(work.validation.latents_of(index), work.validation.text_states(index), generator)
        return cls(work, index, example, answers(work, work.dense, example))

    def __len__(self) -> int:
        return len(self.index)

    def errors(self, expert: nn.Module) -> Float[Tensor, "pictures"]:
        """Mean squared error of an expert's output against the dense one's, for each picture, in float64."""
        return (answers(self.work, expert, self.example) - self.answer).square().flatten(1).mean(1).double()

    def marks(self, pipe: RoutedPipeline) -> Float[Tensor, "pictures experts"]:
        """The errors of every expert of a method on every picture."""
        return torch.stack([self.errors(pipe.expert(index)) for index in range(len(pipe.bundle.fractions))], 1)


@torch.no_grad()
def answers(work: Workspace, model: nn.Module, example: Example) -> Float[Tensor, "pictures channels height width"]:
    """What a model says of the examples, on the CPU; as many at a time as are drawn at a time."""
    said = []
    for part in torch.arange(len(example.timesteps)).split(work.config.evaluate.batch):
        text = {name: states[part] for name, states in example.text.items()}
        noisy, timesteps = example.diffused.noisy[part], example.timesteps[part]
        said.append(work.denoiser.predict(model, noisy, timesteps, text).cpu())
    return torch.cat(said)
