"""Experts against the dense model: the error of a routing, and the least that any routing could have had."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linprog
from torch import Tensor, nn

from aptp.harness.training import Example, generator_for
from aptp.pipeline import RoutedPipeline

if TYPE_CHECKING:
    from aptp.harness.workspace import Workspace

PICTURES = 128
"""Validation latents on which experts are compared with the dense model."""


@dataclass(frozen=True)
class Exam:
    """Noised validation latents and what the dense model says of them; the same for every method of a run."""

    work: Workspace
    index: Int[Tensor, "pictures"]
    """Their places in the validation split."""
    example: Example
    answer: Float[Tensor, "pictures channels height width"]

    @classmethod
    def draw(cls, work: Workspace) -> Exam:
        generator = generator_for(work.config.seed, "teacher error")
        index = torch.randperm(len(work.validation), generator=generator)[:PICTURES]
        example = work.noiser(work.validation.latents[index], work.validation.text_states(index), generator)
        return cls(work, index, example, _said(work, work.dense, example, torch.arange(len(index))))

    def errors(self, expert: nn.Module, rows: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Mean squared error of an expert's output against the dense one's, for each picture of `rows`."""
        said = _said(self.work, expert, self.example, rows)
        return (said - self.answer[rows]).square().flatten(1).mean(1).double()


@torch.no_grad()
def _said(
    work: Workspace, model: nn.Module, example: Example, rows: Int[Tensor, "rows"]
) -> Float[Tensor, "rows channels height width"]:
    """What a model says of some of the examples, on the CPU; as many at a time as are drawn at a time."""
    said = []
    for part in rows.split(work.config.evaluate.batch):
        text = {name: states[part] for name, states in example.text.items()}
        noisy, timesteps = example.diffused.noisy[part], example.timesteps[part]
        said.append(work.denoiser.predict(model, noisy, timesteps, text).cpu())
    return torch.cat(said)


def teacher_error(work: Workspace, pipe: RoutedPipeline, route: Int[Tensor, "validation"]) -> float:
    """Mean error of the experts, each on the pictures whose prompts it serves."""
    exam = work.exam
    mine = route[exam.index]
    rows = {expert: (mine == expert).nonzero().flatten() for expert in mine.unique().tolist()}
    return sum(float(exam.errors(pipe.expert(expert), some).sum()) for expert, some in rows.items()) / len(mine)


def oracle(work: Workspace, pipe: RoutedPipeline, route: Int[Tensor, "validation"]) -> dict[str, float]:
    """The teacher error of a run's routing, and that of the best one, known after the fact, for the same mean cost.

    No router can be deployed that does this; what lies between the two is all that better routes to these experts could
    gain.
    """
    exam, costs = work.exam, torch.tensor(pipe.bundle.fractions, dtype=torch.float64)
    mine, everyone = route[exam.index], torch.arange(len(exam.index))
    errors = torch.stack([exam.errors(pipe.expert(expert), everyone) for expert in range(len(costs))], 1)
    spent = float(costs[mine].mean())
    return {
        "mean_cost": spent,
        "teacher_error": float(errors.gather(1, mine[:, None]).mean()),
        "least_teacher_error": least_error(errors, costs, spent),
    }


def least_error(errors: Float[Tensor, "pictures experts"], costs: Float[Tensor, "experts"], spent: float) -> float:
    """The least mean error of pictures on experts whose mean cost is at most `spent`.

    A linear program, in which pictures may be divided between experts; at its optimum at most one is. Its solver's
    tolerances are absolute, so errors are scaled. NaN where it finds no answer.
    """
    count, experts = errors.shape
    scale = float(errors.max()) or 1.0
    each = np.kron(np.eye(count), np.ones(experts))
    cost = np.tile(costs.numpy(), count)[None]
    if not math.isfinite(scale):
        return math.nan
    errors = errors.flatten().numpy() / scale
    best = linprog(errors, cost, [count * spent * (1 + 1e-12)], each, np.ones(count), bounds=(0, 1))
    return scale * float(best.fun) / count if best.success else math.nan
