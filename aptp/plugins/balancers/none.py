"""None: each prompt takes its nearest code, and nothing keeps the codes apart."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from aptp.core.balancer import Assignment, Balancer
from aptp.plugins.options import NoOptions


class NoBalancer(Balancer):
    """argmax of the scores."""

    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        super().__init__(options)

    def assign(
        self,
        scores: Float[Tensor, "batch experts"],
        *,
        expert_marginals: Float[Tensor, "experts"] | None = None,
        prompt_weights: Float[Tensor, "batch"] | None = None,
    ) -> Assignment:
        return Assignment(scores.argmax(-1), scores.new_zeros(()))
