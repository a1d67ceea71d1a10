"""Random codes: nothing is learned; the control that a search must beat."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aptp.core.codes import gate_by_codes, starting_logits
from aptp.core.router import PromptBatch, Router, RouterContext, Routing
from aptp.plugins.options import RandomCodesOptions
from aptp.plugins.routers._clusters import Clusters


class RandomCodesRouter(Router):
    """Codes drawn by the seed around the start of the search, spread in capacity, and calibrated to the budget.

    A prompt goes to its nearest cluster. With a start from a pruner's scores, the codes are that pruner's with noise;
    without one (`search.start: null`) they are random altogether.

    It has no parameters, so the search trains nothing. Its routes are those of `kmeans`, because they cost no search
    either: with routes by a hash, a learned router could win by sending like prompts to one expert, which recovery
    makes use of, and not by anything that it had searched for. So `kmeans` differs from this control in learned codes
    alone, `contrastive` in learned codes and routes.
    """

    Options = RandomCodesOptions
    learns_routes = False

    def __init__(self, options: RandomCodesOptions) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: RouterContext) -> None:
        self.context = context
        self.clusters = Clusters(context)
        self.register_buffer("code_logits", starting_logits(context, self.options.noise, self.options.spread))

    def forward(
        self,
        prompts: PromptBatch,
        *,
        step: int,
        generator: torch.Generator,
        timesteps: Int[Tensor, "batch"] | None = None,
    ) -> Routing:
        return gate_by_codes(self.context, self.code_logits, self.scores(prompts), step=step, generator=generator)

    def scores(
        self, prompts: PromptBatch, timesteps: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch experts"]:
        return self.clusters(prompts)

    def codes(self) -> Float[Tensor, "experts gates"]:
        return self.context.relaxation.soft(self.code_logits.double())
