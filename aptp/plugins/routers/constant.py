"""Constant: one expert for every prompt, which is what a static pruner serves with; searched, one learned code."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.core.codes import starting_logits
from aptp.core.errors import RequestError
from aptp.core.router import PromptBatch, Router, RouterContext, Routing
from aptp.plugins.options import NoOptions


class ConstantRouter(Router):
    """A router with one code that looks at no prompt."""

    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        super().__init__(options)

    def setup(self, context: RouterContext) -> None:
        if context.num_experts != 1:
            raise RequestError(f"router 'constant' serves one expert, not {context.num_experts}; ask for --experts 1.")
        self.context = context
        self.code_logits = nn.Parameter(starting_logits(context, 0.0))

    def forward(
        self,
        prompts: PromptBatch,
        *,
        step: int,
        generator: torch.Generator,
        timesteps: Int[Tensor, "batch"] | None = None,
    ) -> Routing:
        logits = self.code_logits.expand(len(prompts), -1)
        gates = self.context.relaxation.sample(logits, generator, step / self.context.steps)
        return Routing(gates, torch.zeros(len(prompts), dtype=torch.long, device=gates.device))

    def scores(
        self, prompts: PromptBatch, timesteps: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch experts"]:
        return torch.zeros(len(prompts), 1, dtype=torch.float64)

    def codes(self) -> Float[Tensor, "experts gates"]:
        return self.context.relaxation.soft(self.code_logits.double())  # in float32 closed and open gates would tie
