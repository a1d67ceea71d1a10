"""Entropy: no plan, but a penalty for using few codes and for being unsure of each prompt's own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core import distributed
from aptp.core.balancer import Assignment, Balancer
from aptp.plugins.options import EntropyOptions

_SMALLEST = 1e-12
"""Shares under this count as it: the logarithm of an unused code's share has no slope."""


class EntropyBalancer(Balancer):
    """With p = softmax(scores / T): the penalty is mean H(p) + KL(mean p ‖ marginals), differentiable in the scores.

    For uniform marginals that is mean H(p) − H(mean p) + log N. It is zero where each prompt is sure of its code and
    the codes are used as the marginals say.
    """

    Options = EntropyOptions
    by_loss = True

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
        log_p = distributed.gather((scores / self.options.temperature).log_softmax(-1))
        weights = torch.ones_like(log_p[:, 0]) if prompt_weights is None else distributed.gather(prompt_weights)
        weights = (weights / weights.sum()).to(log_p)
        shares = torch.ones_like(log_p[0]) if expert_marginals is None else expert_marginals.to(log_p)
        shares = shares / shares.sum()
        p = log_p.exp()
        mean = (weights @ p).clamp(min=_SMALLEST)
        unsure = weights @ -(p * log_p).sum(-1)
        uneven = (mean * (mean / shares.clamp(min=_SMALLEST)).log()).sum()
        return Assignment(scores.argmax(-1), self.options.weight * (unsure + uneven))
