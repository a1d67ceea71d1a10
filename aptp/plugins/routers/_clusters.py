"""Clusters of prompts by k-means (faiss)."""

from __future__ import annotations

import faiss
import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.core.errors import RequestError
from aptp.core.router import PromptBatch, RouterContext

MOST = 2**16
"""Points among which clusters are looked for, chosen at random where there are more."""
TRIES = 8
"""Starts of k-means, of which the best is taken: from a single one, two clusters often share a centre."""


def some_of(points: Float[Tensor, "points width"], seed: int) -> Float[Tensor, "some width"]:
    """The points to look for clusters among: all, or a random choice of many, in their order."""
    if len(points) <= MOST:
        return points
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:MOST].sort().values]


def k_means(points: Float[Tensor, "points width"], count: int, seed: int) -> Float[Tensor, "count width"]:
    """Centres of `count` clusters, in float32 on the CPU.

    Raises:
        RequestError: for fewer points than clusters.
        FloatingPointError: for points without finite distances, at which faiss would end the program.
    """
    if len(points) < count:
        raise RequestError(f"{count} experts are more than the {len(points)} training prompts.")
    points = points.detach().float().cpu()
    if not points.square().sum().isfinite():
        raise FloatingPointError("clusters are asked of values that are not finite, or too large; lower search.rate.")
    all_points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}  # by default some are left out
    kmeans = faiss.Kmeans(points.shape[1], count, seed=seed, niter=25, nredo=TRIES, **all_points)
    kmeans.train(points.numpy())
    return torch.from_numpy(kmeans.centroids)


class Clusters(nn.Module):
    """One cluster of the training prompts' embeddings an expert.

    Attributes:
        centres: [experts, embed], a buffer; zeros where there are no training prompts, for a state to fill.
    """

    def __init__(self, context: RouterContext) -> None:
        super().__init__()
        embeds, experts = context.prompts.embeds, context.num_experts
        centres = torch.zeros(experts, embeds.shape[1])
        if len(embeds):
            centres = k_means(some_of(embeds, context.seed), experts, context.seed)
        self.register_buffer("centres", centres)

    def forward(self, prompts: PromptBatch) -> Float[Tensor, "batch experts"]:
        """Minus the squared distance of each prompt's embedding to each centre, in float64."""
        centres = self.centres.double()
        embeds = prompts.embeds.to(centres)
        return 2 * embeds @ centres.T - embeds.square().sum(1, keepdim=True) - centres.square().sum(1)
