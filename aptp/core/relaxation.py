"""Relaxed gates: Gumbel-sigmoid width, ordered depth, straight-through hard values."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core import distributed
from aptp.core.architecture import SearchSpace, harden
from aptp.core.options import RelaxationOptions

_CLAMP = 1e-4
"""Depth probabilities stay this far from 0 and 1: a float32 cumulative sum of a softmax can pass 1."""


class Relaxation:
    """Turns logits of a space into gates in [0, 1].

    Width: m = σ((ℓ + noise + o) / T). Depth: q = flip(cumsum(softmax(v))) along the depth order (outermost first), so
    the gates never rise towards the inside and depth goes from the inside out; m = σ((logit(q) + noise + o) / T) with
    one noise for the whole row. (APTP, "Gumbel-Sigmoid" and "ordered depth".) In an aligned space the width gates
    come out aligned.
    """

    def __init__(self, space: SearchSpace, options: RelaxationOptions) -> None:
        self.space = space
        self.options = options

    def soft(self, logits: Float[Tensor, "batch gates"]) -> Float[Tensor, "batch gates"]:
        """Noise-free relaxed gates: what routing compares and what experts are thresholded from."""
        return self._gates(logits, torch.zeros_like(logits))

    def sample(
        self, logits: Float[Tensor, "batch gates"], generator: torch.Generator, progress: float = 0.0
    ) -> Float[Tensor, "batch gates"]:
        """Gates for training: noisy, and hard with straight-through gradients unless `hard` is off.

        The noise is drawn for the global batch, of which each process takes its own rows: several draw what one would.

        `progress` is the share of the search that is done; where the options anneal, the noise falls with it to none,
        so that the search ends on the codes that are served.
        """
        noise = self._noise(logits, generator) * (1 - progress if self.options.anneal else 1)
        soft = self._gates(logits, noise)
        return self.straight_through(soft) if self.options.hard else soft

    def straight_through(self, soft: Float[Tensor, "batch gates"]) -> Float[Tensor, "batch gates"]:
        """The hard value of `soft`, with the gradient of `soft`."""
        return harden(self.space, soft) + (soft - soft.detach())

    def _gates(self, logits: Tensor, noise: Tensor) -> Tensor:
        order = self.space.depth_order.to(logits.device)
        if order.numel():
            q = logits[..., order].softmax(-1).cumsum(-1).flip(-1).clamp(_CLAMP, 1 - _CLAMP)
            shift = self.options.depth_offset - self.options.offset
            logits = logits.index_copy(-1, order, q.logit() + shift)
            noise = noise.index_copy(-1, order, noise[..., order[:1]].expand_as(q))
        return self.space.aligned(((logits + noise + self.options.offset) / self.options.temperature).sigmoid())

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        everyone = like.shape[0] * distributed.processes(), *like.shape[1:]
        uniform = torch.rand(everyone, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        uniform = distributed.own(uniform)
        noise: dict[Literal["logistic", "gumbel"], Tensor] = {
            "logistic": uniform.logit(),
            "gumbel": -(-uniform.log()).log(),
        }
        return noise[self.options.noise].to(like)
