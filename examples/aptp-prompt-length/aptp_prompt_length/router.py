"""Length: the words of a prompt decide; is a learned router worth more than that?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from aptp.core.router import PromptBatch, Router, RouterContext, Routing


class LengthRouter(Router):
    """Expert i serves the i-th quantile of the training prompts' word counts.

    The codes are learned by the denoiser's gradient; they start spread, the last expert (long prompts) the fullest.
    """

    class Options(BaseModel):
        """How the codes start."""

        model_config = ConfigDict(extra="forbid")

        spread: float = Field(1.0, ge=0, description="distance of the first and the last expert's logits at the start")
        noise: float = Field(0.1, ge=0, description="standard deviation of a logit at the start; 0 leaves gates tied")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: RouterContext) -> None:
        self.context, experts = context, context.num_experts
        edges = torch.zeros(experts - 1, dtype=torch.float64)
        if len(context.prompts):  # one that is loaded to serve takes them from its state
            edges = words(context.prompts.text).quantile(torch.linspace(0, 1, experts + 1, dtype=torch.float64)[1:-1])
        self.register_buffer("edges", edges)
        logits = torch.randn(experts, context.space.num_gates, generator=torch.Generator().manual_seed(context.seed))
        levels = torch.linspace(-0.5, 0.5, experts) if experts > 1 else torch.zeros(1)
        self.code_logits = nn.Parameter(self.options.noise * logits + self.options.spread * levels[:, None])

    def forward(
        self,
        prompts: PromptBatch,
        *,
        step: int,
        generator: torch.Generator,
        timesteps: Int[Tensor, "batch"] | None = None,
    ) -> Routing:
        assignment = self.context.balancer.assign(self.scores(prompts))
        logits = self.code_logits[assignment.index]
        gates = self.context.relaxation.sample(logits, generator, step / self.context.steps)
        return Routing(gates, assignment.index, {"balance": assignment.penalty})

    def scores(
        self, prompts: PromptBatch, timesteps: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch experts"]:
        """Minus the words by which a prompt misses each expert's range, 0 within it."""
        count = words(prompts.text).to(self.edges.device)[:, None]
        low = torch.nn.functional.pad(self.edges, (1, 0), value=-torch.inf)
        high = torch.nn.functional.pad(self.edges, (0, 1), value=torch.inf)
        return -((low - count).relu() + (count - high).relu())

    def codes(self) -> Float[Tensor, "experts gates"]:
        return self.context.relaxation.soft(self.code_logits)


def words(texts: Sequence[str]) -> Float[Tensor, "batch"]:
    """The number of words of each text."""
    return torch.tensor([len(text.split()) for text in texts], dtype=torch.float64)
