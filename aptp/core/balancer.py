"""Balancers: from scores of prompts against codes to a training assignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor, nn

EQUAL_MASS = 1e-4
"""Masses of a plan this near to one another, relatively, are equal."""


@dataclass(frozen=True)
class Assignment:
    """Which code each prompt of a batch trains.

    `plan` is [batch, experts], non-negative, with the prompts' weights (1/batch each by default) as row sums, for a
    balancer that makes one. `penalty` is a differentiable scalar to add to the loss.
    """

    index: Int[Tensor, "batch"]
    penalty: Float[Tensor, ""]
    plan: Float[Tensor, "batch experts"] | None = None


def shares_of(weights: Float[Tensor, "n"] | None, like: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Weights scaled to sum to 1, in float64; equal ones, one for each of `like`, where there are none."""
    weights = torch.ones_like(like) if weights is None else weights.to(like.device)
    return weights.double() / weights.double().sum()


def heaviest(plan: Float[Tensor, "batch experts"], scores: Float[Tensor, "batch experts"]) -> Int[Tensor, "batch"]:
    """The code of each prompt's largest mass; of masses equal to rounding, that of the highest score."""
    best = plan >= plan.max(-1, keepdim=True).values * (1 - EQUAL_MASS)
    return scores.detach().masked_fill(~best, -torch.inf).argmax(-1)


class Balancer(nn.Module, ABC):
    """Assigns prompts to codes while training; serving never calls it."""

    Options: ClassVar[type[BaseModel]]
    by_loss: ClassVar[bool] = False
    """Whether it balances by its penalty alone; such a one needs a router that learns its routes."""

    @abstractmethod
    def __init__(self, options: BaseModel) -> None:
        super().__init__()

    @abstractmethod
    def assign(
        self,
        scores: Float[Tensor, "batch experts"],
        *,
        expert_marginals: Float[Tensor, "experts"] | None = None,
        prompt_weights: Float[Tensor, "batch"] | None = None,
    ) -> Assignment:
        """Assign the prompts of this process's batch.

        Args:
            scores: similarity of each prompt to each code; larger is nearer.
            expert_marginals: the share of prompts each code should get; uniform if None.
            prompt_weights: the weight of each prompt; uniform if None.
        """

    def serving_bias(self, scores: Float[Tensor, "prompts experts"]) -> Float[Tensor, "experts"]:
        """What serving adds to the scores, so that its argmax follows this balancer on the given (training) prompts.

        Zero unless the balancer knows better.
        """
        return torch.zeros_like(scores[0], dtype=torch.float64)
