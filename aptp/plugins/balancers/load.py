"""Load: no plan, but the load-balancing loss of the Switch Transformer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from aptp.core import distributed
from aptp.core.balancer import Assignment, Balancer, shares_of
from aptp.plugins.options import LoadOptions

_SMALLEST = 1e-12
"""Shares under this count as it: they divide."""


class LoadBalancer(Balancer):
    """A prompt takes its nearest code; the penalty is N·Σ_i f_i·P_i over the N codes and the global batch.

    f_i is the share of prompts whose nearest code is i, P_i the mean of softmax(scores / T). The gradient goes through
    P: the scores of a code that has many prompts fall. The sum is 1 where codes are used evenly, and up to N where they
    collapse. Where shares b are asked for, it is Σ_i f_i·P_i/b_i, of which this is the even case.
    (Fedus et al. 2021, "Switch Transformers", equations 4 to 6.)
    """

    Options = LoadOptions
    by_loss = True

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options)
        self.options = options

    def assign(
        self,
        scores: Float[Tensor, "batch experts"],
        *,
        expert_marginals: Float[Tensor, "experts"] | None = None,
        prompt_weights: Float[Tensor, "batch"] | None = None,
    ) -> Assignment:
        everyone = distributed.gather(scores)
        weights = None if prompt_weights is None else distributed.gather(prompt_weights)
        rows = shares_of(weights, everyone[:, 0]).to(everyone)
        asked = shares_of(expert_marginals, everyone[0]).to(everyone).clamp(min=_SMALLEST)
        used = rows @ one_hot(everyone.argmax(-1), everyone.shape[1]).to(everyone)
        mean = rows @ (everyone / self.options.temperature).softmax(-1)
        return Assignment(scores.argmax(-1), self.options.weight * (used * mean / asked).sum())
