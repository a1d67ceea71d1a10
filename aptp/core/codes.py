"""Codes as a table of logits, one row an expert: what routers share that learn codes but no routes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core.router import RouterContext, Routing


def starting_logits(context: RouterContext, noise: float, spread: float = 0.0) -> Float[Tensor, "experts gates"]:
    """Logits drawn by the run's seed, around the run's start and a level that rises from the first expert to the last.

    Args:
        noise: standard deviation of a logit; at 0 the gates of a code, and without `spread` the codes, are tied.
        spread: distance of the first and the last expert's levels. It orders the codes by their open width gates;
            depth gates do not see it, because they come of a softmax.
    """
    shape, experts = (context.num_experts, context.space.num_gates), context.num_experts
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(context.seed))
    levels = torch.linspace(-0.5, 0.5, experts) if experts > 1 else torch.zeros(1)
    start = 0.0 if context.start is None else context.start
    return start + noise * drawn + spread * levels[:, None]


def gate_by_codes(
    context: RouterContext,
    logits: Float[Tensor, "experts gates"],
    scores: Float[Tensor, "batch experts"],
    *,
    step: int,
    generator: torch.Generator,
) -> Routing:
    """A search step in which the balancer gives each prompt a code, and the code's sampled gates gate its picture."""
    assignment = context.balancer.assign(scores)
    gates = context.relaxation.sample(logits[assignment.index], generator, step / context.steps)
    return Routing(gates, assignment.index, {"balance": assignment.penalty})
