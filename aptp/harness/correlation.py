"""Spearman's rank correlation with an interval that does not take repeated captions for independent prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000
LEVEL = 95.0
"""Percent of the resamples that lie within the interval."""


class Correlation(NamedTuple):
    """A rank correlation and its interval."""

    spearman: float
    low: float
    high: float


def spearman(
    x: Float[np.ndarray, "rows"], y: Float[np.ndarray, "rows"], clusters: Int[np.ndarray, "rows"], seed: int
) -> Correlation | None:
    """Spearman's ρ of x and y, with the percentile interval of a clustered bootstrap.

    Whole clusters are drawn with replacement, as many as there are, 1,000 times. Resamples in which x or y is constant
    have no correlation and are left out.

    Returns:
        None where the correlation is not defined: values that are no numbers, fewer than three, or all alike.
    """
    if len(x) < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    whole, *resampled = weighted_spearman(x, y, np.vstack([np.ones(len(x)), draws[:, cluster]]))
    known = np.array(resampled)[np.isfinite(resampled)]
    if not np.isfinite(whole) or not len(known):
        return None
    low, high = np.percentile(known, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return Correlation(float(whole), float(low), float(high))


def weighted_spearman(
    x: Float[np.ndarray, "rows"], y: Float[np.ndarray, "rows"], weights: Float[np.ndarray, "samples rows"]
) -> Float[np.ndarray, "samples"]:
    """ρ of samples in which each row occurs as often as its weight says; NaN where x or y is constant in a sample."""
    ranks_x, ranks_y = _ranks(x, weights), _ranks(y, weights)
    total = weights.sum(1, keepdims=True)
    middle = (total + 1) / 2  # of all ranks, whatever the ties
    ranks_x, ranks_y = ranks_x - middle, ranks_y - middle
    covariance = (weights * ranks_x * ranks_y).sum(1)
    variances = (weights * ranks_x**2).sum(1) * (weights * ranks_y**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > 0, covariance / np.sqrt(variances), np.nan)


def _ranks(values: Float[np.ndarray, "rows"], weights: Float[np.ndarray, "samples rows"]) -> np.ndarray:
    """The rank of each row in each sample; ties share the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # of each distinct value, in order
    counts = np.add.reduceat(weights[:, order], first, axis=1)
    middles = np.cumsum(counts, axis=1) - (counts - 1) / 2
    _, place = np.unique(values, return_inverse=True)
    return middles[:, place]
