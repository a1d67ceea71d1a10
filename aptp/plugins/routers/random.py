"""Random: a hash of the prompt picks the expert; codes are learned, and routes mean nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.core.codes import gate_by_codes, starting_logits
from aptp.core.router import PromptBatch, Router, RouterContext, Routing
from aptp.core.text import hashed
from aptp.plugins.options import CodesOptions


class RandomRouter(Router):
    """Every expert draws a number in [0, 1) for the prompt, a hash of its normalised text; the highest has it.

    That is rendezvous hashing (Thaler & Ravishankar, 1998). Single hashes would tie all prompts but for their expert,
    and a serving bias could only move them all at once; with numbers it evens out the shares.
    """

    Options = CodesOptions
    learns_routes = False

    def __init__(self, options: CodesOptions) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: RouterContext) -> None:
        self.context = context
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
        experts = range(len(self.code_logits))
        drawn = [[hashed(text, expert) for expert in experts] for text in prompts.text]
        return torch.tensor(drawn, dtype=torch.float64).view(len(prompts), len(experts)).to(self.code_logits.device)

    def codes(self) -> Float[Tensor, "experts gates"]:
        return self.context.relaxation.soft(self.code_logits.double())
