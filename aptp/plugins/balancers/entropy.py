"""Entropy: no plan, but a penalty for using few codes and for being unsure of each prompt's own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core import distributed
from aptp.core.balancer import Assignment, Balancer
from aptp.plugins.options import EntropyOptions


class EntropyBalancer(Balancer):
    """With p = softmax(scores / T): the penalty is mean H(p) − H(mean p), differentiable in the scores.

    Marginals other than uniform turn the second term into the divergence from them: mean H(p) + KL(mean p ‖ marginals).
    """

    Options = EntropyOptions

    def __init__(self, options: EntropyOptions) -> None:
        super().__init__(options)
        self.options = options

    def assign(
        self,
        scores: Float[Tensor, "batch experts"],
        *,
        expert_marginals: Float[Tensor, "experts"] | None = None,
        prompt_weights: Float[Tensor, "batch"] | None = None,
    ) -> Assignment:
        probabilities = distributed.gather((scores / self.options.temperature).softmax(-1))
        weights = torch.ones_like(probabilities[:, 0]) if prompt_weights is None else distributed.gather(prompt_weights)
        weights = weights / weights.sum()
        shares = torch.ones_like(scores[0]) if expert_marginals is None else expert_marginals
        shares = shares / shares.sum()
        mean = weights @ probabilities
        unsure = weights @ _entropy(probabilities)
        uneven = -_entropy(mean) - (mean * shares.log()).sum()
        return Assignment(scores.argmax(-1), self.options.weight * (unsure + uneven))


def _entropy(probabilities: Float[Tensor, "*rows experts"]) -> Float[Tensor, "*rows"]:
    return torch.special.entr(probabilities).sum(-1)
