"""Balancers: from scores of prompts against codes to a training assignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Assignment:
    """Which code each prompt of a batch trains.

    `plan` is [batch, experts], non-negative, with the prompts' weights (1/batch each by default) as row sums, for a
    balancer that makes one. `penalty` is a differentiable scalar to add to the loss.
    """

    index: Int[Tensor, "batch"]
    penalty: Float[Tensor, ""]
    plan: Float[Tensor, "batch experts"] | None = None


class Balancer(nn.Module, ABC):
    """Assigns prompts to codes while training; serving never calls it."""

    Options: ClassVar[type[BaseModel]]

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
