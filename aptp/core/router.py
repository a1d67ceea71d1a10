"""Routers: which expert serves a prompt, and how the codes of the experts are learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int, Num
from pydantic import BaseModel
from torch import Tensor, nn

from aptp.core.architecture import SearchSpace
from aptp.core.relaxation import Relaxation

if TYPE_CHECKING:
    from aptp.core.balancer import Balancer
    from aptp.core.budget import CostModel


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as a router sees them: their texts, frozen embeddings [batch, embed], and stable identifiers."""

    text: Sequence[str]
    embeds: Float[Tensor, "batch embed"]
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.text)

    def to(self, device: torch.device) -> PromptBatch:
        """The same prompts with their embeddings on `device`."""
        return PromptBatch(self.text, self.embeds.to(device), self.ids)

    def __getitem__(self, index: Sequence[int]) -> PromptBatch:
        rows = torch.as_tensor(index, dtype=torch.long)
        return PromptBatch(
            [self.text[i] for i in rows], self.embeds[rows], [self.ids[i] for i in rows] if self.ids else ()
        )


@dataclass(frozen=True)
class RouterContext:
    """What a router is set up with, before its first step.

    A router that is loaded to serve gets no cost model, no prompts (but their embeddings' width) and no steps: it
    makes its parameters and buffers of the right shape, and its state fills them.
    """

    space: SearchSpace
    num_experts: int
    balancer: Balancer
    cost_model: CostModel | None
    relaxation: Relaxation
    prompts: PromptBatch
    """The training prompts."""
    steps: int
    """How many search steps there will be."""
    seed: int = 0
    start: Float[Tensor, "gates"] | None = None
    """Logits that codes start from; zeros if not given."""


@dataclass(frozen=True)
class Routing:
    """A router's answer while it trains.

    `gates` [batch, gates] gate the denoiser for each prompt; `index` [batch] names the code each came from, −1 where a
    prompt was gated by an architecture of its own; `losses` are weighted terms to add to the objective.
    """

    gates: Float[Tensor, "batch gates"]
    index: Int[Tensor, "batch"]
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Router(nn.Module, ABC):
    """Learns codes and routes prompts to them. Its state (parameters and buffers) is all that serving needs."""

    Options: ClassVar[type[BaseModel]]
    learns_routes: ClassVar[bool] = True
    """Whether its scores change with training; otherwise a balancer that works by a loss has nothing to move."""
    code_parameters: ClassVar[tuple[str, ...]] = ("code_logits",)
    """Names of parameters, if it has them, that are logits of gates themselves: a search trains them at their own rate.

    A step of Adam moves such a logit by the rate, and one that a predictor adds up by its embedding's absolute sum
    times that: in 384 dimensions some 16 times as far.
    """

    @abstractmethod
    def __init__(self, options: BaseModel) -> None:
        super().__init__()

    @abstractmethod
    def setup(self, context: RouterContext) -> None:
        """Create parameters and buffers for a space and a number of experts: once, before training or loading."""

    @abstractmethod
    def forward(
        self,
        prompts: PromptBatch,
        *,
        step: int,
        generator: torch.Generator,
        timesteps: Num[Tensor, "batch"] | None = None,
    ) -> Routing:
        """One search step's gates and losses for a batch of prompts (this process's share of the global batch).

        A loss over rows of the global batch (`aptp.core.distributed.gather`) is whole on every process, one over its
        own rows a mean: the mean over processes is then right for both, and for their gradients.
        """

    @abstractmethod
    def scores(
        self, prompts: PromptBatch, timesteps: Num[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch experts"]:
        """How well each expert suits each prompt, in float64; a function of each prompt alone."""

    @abstractmethod
    def codes(self) -> Float[Tensor, "experts gates"]:
        """The experts' noise-free relaxed gates in [0, 1]; core thresholds them."""

    @property
    def learns(self) -> bool:
        """Whether a search has anything to train; a router without parameters serves as it was set up."""
        return any(parameter.requires_grad for parameter in self.parameters())


SCORED = 1024
"""Prompts that are scored at once: a router may make a number for each gate on the way."""


@torch.no_grad()
def scores_of(
    router: Router, prompts: PromptBatch, device: torch.device | None = None
) -> Float[Tensor, "prompts experts"]:
    """The router's scores of any number of prompts, on the CPU in float64.

    Args:
        device: the router's, the CPU by default; the prompts stay where they are.
    """
    starts = range(0, max(len(prompts), 1), SCORED)
    parts = (prompts[range(start, min(start + SCORED, len(prompts)))] for start in starts)
    return torch.cat([router.scores(part.to(device or torch.device("cpu"))).double().cpu() for part in parts])


def serve(scores: Float[Tensor, "batch experts"], expert_bias: Float[Tensor, "experts"]) -> Int[Tensor, "batch"]:
    """The expert of each prompt: argmax(scores + bias) in float64, the lowest index on ties."""
    return (scores.double() + expert_bias.double()).argmax(-1)


def load_of(route: Int[Tensor, "prompts"], experts: int) -> Float[Tensor, "experts"]:
    """Each expert's share of the prompts, in float64."""
    return route.bincount(minlength=experts).double() / len(route)


def perplexity(load: Float[Tensor, "experts"]) -> float:
    """exp of the entropy of the experts' shares of prompts: how many experts are in use, in effect."""
    return float(torch.special.entr(load.double()).sum().exp())


def margins(scores: Float[Tensor, "batch experts"], expert_bias: Float[Tensor, "experts"]) -> Float[Tensor, "batch"]:
    """How far the served expert is ahead of the next; infinite where there is only one."""
    biased = scores.double() + expert_bias.double()
    if biased.shape[1] == 1:
        return torch.full_like(biased[:, 0], torch.inf)
    best, second = biased.topk(2, dim=-1).values.unbind(-1)
    return best - second
