"""The contrastive router of APTP: an architecture predictor and learned codes, compared by cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from aptp.core import distributed
from aptp.core.codes import starting_logits
from aptp.core.router import PromptBatch, Router, RouterContext, Routing
from aptp.plugins.options import ContrastiveOptions
from aptp.plugins.routers._clusters import k_means, some_of


class ContrastiveRouter(Router):
    """Sends a prompt to the code most like the architecture predicted for it.

    For the first `warmup` share of the steps each prompt is gated by its own predicted architecture, which trains the
    predictor through the denoiser. Then the codes are set to the k-means centres of what the predictor says of the
    training prompts, and take the denoiser's gradient, while the predictor takes the contrastive one.
    (Ganjdanesh et al., ICLR 2025, sections on the prompt router and on contrastive training.)
    """

    Options = ContrastiveOptions

    def __init__(self, options: ContrastiveOptions) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: RouterContext) -> None:
        self.context = context
        space, embed = context.space, context.prompts.embeds.shape[1]
        self.predictor = nn.Linear(embed, space.num_gates)
        generator = torch.Generator().manual_seed(context.seed)
        self.predictor.bias.data.copy_(starting_logits(context, 0.0)[0])
        with torch.no_grad():  # one orthogonal head a site
            for place in space.slices:
                nn.init.orthogonal_(self.predictor.weight[place], generator=generator)
        self.code_logits = nn.Parameter(torch.zeros(context.num_experts, space.num_gates))

    @property
    def _warmup_steps(self) -> int:
        """At least one step is left to the codes."""
        return min(round(self.options.warmup * self.context.steps), self.context.steps - 1)

    def forward(
        self,
        prompts: PromptBatch,
        *,
        step: int,
        generator: torch.Generator,
        timesteps: Int[Tensor, "batch"] | None = None,
    ) -> Routing:
        if step == self._warmup_steps:
            self._init_codes()
        progress = step / self.context.steps
        logits = self.predictor(prompts.embeds)
        predicted = self._features(logits)
        losses = {"contrastive": self.options.weight * self._contrastive(prompts.embeds, predicted)}
        if step < self._warmup_steps:
            index = torch.full((len(prompts),), -1, device=logits.device)
            return Routing(self.context.relaxation.sample(logits, generator, progress), index, losses)
        assignment = self.context.balancer.assign(predicted @ self._features(self.code_logits).T)
        gates = self.context.relaxation.sample(self.code_logits[assignment.index], generator, progress)
        return Routing(gates, assignment.index, losses | {"balance": assignment.penalty})

    @torch.no_grad()
    def scores(
        self, prompts: PromptBatch, timesteps: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch experts"]:
        embeds = prompts.embeds.to(self.predictor.weight.device).double()
        logits = F.linear(embeds, self.predictor.weight.double(), self.predictor.bias.double())
        return self._features(logits) @ self._features(self.code_logits.double()).T

    def codes(self) -> Float[Tensor, "experts gates"]:
        return self.context.relaxation.soft(self.code_logits.double())  # in float32 closed and open gates would tie

    def _features(self, logits: Float[Tensor, "rows gates"]) -> Float[Tensor, "rows gates"]:
        return self.context.space.features(self.context.relaxation.soft(logits))

    @torch.no_grad()
    def _init_codes(self) -> None:
        """From random codes every score would tie; from k-means over the predictor's logits they do not."""
        embeds = some_of(self.context.prompts.embeds, self.context.seed).to(self.predictor.weight.device)
        centres = k_means(self.predictor(embeds), len(self.code_logits), self.context.seed)
        self.code_logits.copy_(distributed.shared(centres))

    def _contrastive(
        self, embeds: Float[Tensor, "batch embed"], architectures: Float[Tensor, "batch gates"]
    ) -> Float[Tensor, ""]:
        """Mean binary cross-entropy of Q against P over pairs of prompts of the global batch.

        P = softmax(cos(z_i, z_j)/τ_z), Q = softmax(cos(arch_i, arch_j)/τ_a); a prompt and itself are a pair only where
        the options say so.
        """
        embeds = F.normalize(distributed.gather(embeds), dim=-1)
        architectures = distributed.gather(architectures)
        if len(embeds) < 3:  # two prompts have one neighbour each: nothing to compare
            return architectures.sum() * 0
        pairs = (lambda square: square) if self.options.diagonal else _others
        likeness = pairs(embeds @ embeds.T)
        p = (likeness / (self.options.prompt_temperature or self._temperature_of(likeness))).softmax(-1)
        q = (pairs(architectures @ architectures.T) / self.options.temperature).softmax(-1)
        return F.binary_cross_entropy(q.clamp(1e-7, 1 - 1e-7), p)

    def _temperature_of(self, likeness: Float[Tensor, "batch others"]) -> float:
        """The temperature at which a row of P has the stated perplexity on (geometric) average, by bisection."""
        target = min(self.options.perplexity, 0.9 * likeness.shape[1])
        low, high = 1e-3, 10.0
        for _ in range(30):
            middle = (low * high) ** 0.5
            perplexity = torch.special.entr((likeness / middle).softmax(-1)).sum(-1).mean().exp()
            low, high = (middle, high) if perplexity < target else (low, middle)
        return high


def _others(square: Float[Tensor, "batch batch"]) -> Float[Tensor, "batch others"]:
    """Each row without its diagonal entry."""
    size = len(square)
    return square.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)
