"""Sinkhorn: entropic optimal transport keeps the codes from collapsing into one (POT's solver)."""

from __future__ import annotations

import ot
import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core import distributed
from aptp.core.balancer import Assignment, Balancer
from aptp.plugins.options import SinkhornOptions


class SinkhornBalancer(Balancer):
    """Maximises ⟨Q, scores⟩ + ε·H(Q) over plans with the given marginals; a prompt takes the code of its largest mass.

    The plan is that of the global batch when there are several processes. It is computed in the log domain and in
    float64, so no score overflows.
    """

    Options = SinkhornOptions

    def __init__(self, options: SinkhornOptions) -> None:
        super().__init__(options)
        self.options = options

    def assign(
        self,
        scores: Float[Tensor, "batch experts"],
        *,
        expert_marginals: Float[Tensor, "experts"] | None = None,
        prompt_weights: Float[Tensor, "batch"] | None = None,
    ) -> Assignment:
        everyone = distributed.gather(scores.detach())
        weights = distributed.gather(prompt_weights) if prompt_weights is not None else torch.ones_like(everyone[:, 0])
        shares = expert_marginals if expert_marginals is not None else torch.ones_like(everyone[0])
        plan = ot.sinkhorn(
            _shares(weights),
            _shares(shares),
            -everyone.double(),
            self.options.epsilon,
            method="sinkhorn_log",
            numItermax=self.options.iterations,
            stopThr=self.options.tolerance,
            warn=False,
        )
        mine = distributed.own(plan)
        return Assignment(mine.argmax(-1), scores.new_zeros(()), mine.to(scores.dtype))

    def serving_bias(self, scores: Float[Tensor, "prompts experts"]) -> Float[Tensor, "experts"]:
        """The codes' dual prices of exact transport with even shares: what a plan adds to the scores before its argmax.

        Served with them, the given prompts spread evenly over the experts.
        """
        cost = -scores.detach().double()
        even = _shares(torch.ones_like(cost[:, 0])), _shares(torch.ones_like(cost[0]))
        prices = ot.emd(*even, cost, log=True)[1]["v"]
        return prices - prices.mean()


def _shares(weights: Tensor) -> Tensor:
    return weights.double() / weights.double().sum()
