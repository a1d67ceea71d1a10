"""CMMD: the maximum mean discrepancy of CLIP image embeddings."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core.metric import GenerationBatch, Metric
from aptp.plugins.options import FeatureOptions

from ._features import load_features
from ._halves import Halves

SIGMA = 10.0
SCALE = 1000.0
ROWS = 2048


def mean_kernel(x: Float[Tensor, "n embed"], y: Float[Tensor, "m embed"]) -> float:
    """The mean over all pairs of exp(−‖x − y‖² / 2σ²), in blocks of rows."""
    total = sum(torch.exp(-torch.cdist(rows, y).square() / (2 * SIGMA**2)).sum() for rows in x.split(ROWS))
    return float(total) / (len(x) * len(y))


def squared_mmd(x: Float[Tensor, "n embed"], y: Float[Tensor, "m embed"]) -> float:
    """1000 times the squared maximum mean discrepancy, pairs of a picture with itself included."""
    return SCALE * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


class CMMD(Metric):
    """The metric `cmmd` (Jayasumana et al., Rethinking FID, CVPR 2024): Gaussian kernel, σ = 10, times 1000.

    The estimator is the one that published figures come from: the authors' program keeps the diagonal of the kernel
    (biased, variance smallest), where their text gives the unbiased form. In float64, because the kernel is nearly
    linear at σ = 10 and the difference is a small one. Figures `cmmd_<features>`, `…_half` and `…_floor`: see
    `aptp.plugins.metrics._halves`.
    """

    Options = FeatureOptions

    def __init__(self, options: FeatureOptions) -> None:
        self._features, self._halves = load_features(options.features), Halves()

    def update(self, batch: GenerationBatch) -> None:
        self._halves.update(self._features.embed(batch))

    def compute(self) -> dict[str, float]:
        return self._halves.figures(f"cmmd_{self._features.label}", squared_mmd)
