"""Unbalanced: entropic transport that may miss the codes' shares, at a price."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core import distributed
from aptp.core.balancer import Assignment, Balancer, heaviest, shares_of
from aptp.plugins.options import UnbalancedOptions

_SMALLEST = 1e-300
"""Shares under this count as it: the logarithm of none is infinite."""


class UnbalancedBalancer(Balancer):
    """Maximises ⟨Q, scores⟩ − ε·KL(Q ‖ w⊗b) − ρ·KL(columns of Q ‖ b) over plans with the prompts' weights w as rows.

    With b the asked shares and ρ the strictness; a prompt takes the code of its largest mass in the plan of the global
    batch. So a code that really suits more prompts than its share may keep some of them. Solved by the scaling
    algorithm of Chizat et al. (2018, "Scaling algorithms for unbalanced optimal transport problems") in the log domain
    and in float64, where no score overflows. POT has the same solver, which the tests compare with, but not in the log
    domain: a code that lies some 700·ε behind for every prompt ends it early, with a plan whose rows are wrong.
    """

    Options = UnbalancedOptions

    def __init__(self, options: UnbalancedOptions) -> None:
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
        rows, columns = shares_of(weights, everyone[:, 0]), shares_of(expert_marginals, everyone[0])
        biased = everyone + self._prices(everyone, rows, columns)
        plan = distributed.own(rows[:, None] * (biased / self.options.epsilon).softmax(-1))
        return Assignment(heaviest(plan, scores), scores.new_zeros(()), plan.to(scores.dtype))

    def serving_bias(self, scores: Float[Tensor, "prompts experts"]) -> Float[Tensor, "experts"]:
        """The prices of even shares on the given prompts: what a plan adds to the scores before its argmax."""
        scores = scores.detach().double()
        prices = self._prices(scores, shares_of(None, scores[:, 0]), shares_of(None, scores[0]))
        return prices - prices.mean()

    def _prices(
        self, scores: Float[Tensor, "batch experts"], rows: Float[Tensor, "batch"], columns: Float[Tensor, "experts"]
    ) -> Float[Tensor, "experts"]:
        """What the best plan, rows·softmax((scores + prices)/ε), adds to the scores of each code.

        An iteration shrinks their error by ρ/(ρ + ε) at least, whatever the scores.
        """
        epsilon = self.options.epsilon
        shrink = self.options.strictness / (self.options.strictness + epsilon)
        log_rows, log_shares = rows.log()[:, None], columns.clamp(min=_SMALLEST).log()
        price = torch.zeros_like(columns)  # in units of ε, beside the share's own logarithm
        for _ in range(self.options.iterations):
            log_plan = log_rows + (scores / epsilon + log_shares + price).log_softmax(-1)
            before, price = price, shrink * (price + log_shares - log_plan.logsumexp(0))
            if (price - before).abs().max() <= self.options.tolerance:
                break
        return epsilon * (log_shares + price)
