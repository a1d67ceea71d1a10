"""K-means: a prompt goes to the nearest cluster of the training prompts; codes are learned, routes are not."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.core.codes import gate_by_codes, starting_logits
from aptp.core.router import PromptBatch, Router, RouterContext, Routing
from aptp.plugins.options import CodesOptions
from aptp.plugins.routers._clusters import Clusters


class KMeansRouter(Router):
    """Sends a prompt to the expert whose centre is nearest to its embedding.

    The centres are k-means' of the training prompts and stay as they are; each cluster's code takes the denoiser's
    gradient. What a contrastive router gains over this one, it gains by learning who goes where.
    """

    Options = CodesOptions
    learns_routes = False

    def __init__(self, options: CodesOptions) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: RouterContext) -> None:
        self.context = context
        self.clusters = Clusters(context)
        self.code_logits = nn.Parameter(starting_logits(context, self.options.noise))

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
