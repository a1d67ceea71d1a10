"""Sinkhorn: entropic optimal transport keeps the codes from collapsing into one (POT's solver)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core import distributed
from aptp.core.balancer import Assignment, Balancer, heaviest, shares_of
from aptp.core.transport import ot
from aptp.plugins.options import SinkhornOptions

_EXACT = 1e3
"""Scores that differ by more than this times ε: transport is exact."""
_PIVOTS = 10_000_000
"""At most so many steps of the exact solver."""


class SinkhornBalancer(Balancer):
    """Maximises ⟨Q, scores⟩ + ε·H(Q) over plans with the given marginals; a prompt takes the code of its largest mass.

    The plan is that of the global batch when there are several processes. It is computed in the log domain and in
    float64, so no score overflows. Where ε is next to nothing beside the scores, iterations would not end and the plan
    is the exact one.
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
        everyone = distributed.gather(scores.detach()).double()
        weights = None if prompt_weights is None else distributed.gather(prompt_weights)
        plan, _ = self._plan(shares_of(weights, everyone[:, 0]), shares_of(expert_marginals, everyone[0]), -everyone)
        mine = distributed.own(plan)
        return Assignment(heaviest(mine, scores), scores.new_zeros(()), mine.to(scores.dtype))

    def _plan(
        self, rows: Float[Tensor, "batch"], columns: Float[Tensor, "experts"], cost: Float[Tensor, "batch experts"]
    ) -> tuple[Float[Tensor, "batch experts"], Float[Tensor, "experts"]]:
        """The plan, and the codes' dual prices: a row's masses are in the order of its prices less its costs."""
        if 1 in cost.shape:  # there is but one plan, which the exact solver would call infeasible
            return rows[:, None] * columns, torch.zeros_like(columns)
        if cost.max() - cost.min() > _EXACT * self.options.epsilon:
            plan, log = ot.emd(rows, columns, cost, numItermax=_PIVOTS, log=True)
            return plan, log["v"]
        plan, log = ot.sinkhorn(
            rows,
            columns,
            cost,
            self.options.epsilon,
            method="sinkhorn_log",
            numItermax=self.options.iterations,
            stopThr=self.options.tolerance,
            warn=False,
            log=True,
        )
        return plan, self.options.epsilon * log["log_v"]

    def serving_bias(self, scores: Float[Tensor, "prompts experts"]) -> Float[Tensor, "experts"]:
        """The codes' dual prices in the plan of all the given prompts: what it adds to the scores before its argmax.

        Served with them, a prompt gets the code that training would give it in a batch like the whole of the data: of
        a smoothed plan, whose largest masses are not quite evenly spread, just as much as of a sharp one.
        """
        scores = scores.detach().double()
        _, prices = self._plan(shares_of(None, scores[:, 0]), shares_of(None, scores[0]), -scores)
        return prices - prices.mean()
