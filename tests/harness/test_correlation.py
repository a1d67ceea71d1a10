"""Rank correlations and their intervals, against scipy's."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from aptp.harness.correlation import spearman, weighted_spearman


@given(rows=st.integers(3, 30), values=st.integers(2, 30), seed=st.integers(0, 999))
def test_a_row_of_weight_n_is_n_rows(rows: int, values: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    x, y = chance.integers(values, size=(2, rows)).astype(float)
    weights = chance.integers(4, size=(5, rows)).astype(float)
    for found, times in zip(weighted_spearman(x, y, weights), weights.astype(int), strict=True):
        long_x, long_y = np.repeat(x, times), np.repeat(y, times)
        if len(np.unique(long_x)) < 2 or len(np.unique(long_y)) < 2:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(scipy.stats.spearmanr(long_x, long_y).statistic, abs=1e-12)


def test_interval_is_that_of_scipys_bootstrap_where_every_row_is_a_cluster() -> None:
    chance = np.random.default_rng(0)
    x = chance.standard_normal(200)
    y = x + 1.5 * chance.standard_normal(200)
    found = spearman(x, y, np.arange(200), seed=1)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_copies_of_a_caption_are_not_taken_for_evidence() -> None:
    chance = np.random.default_rng(0)
    x, y = chance.standard_normal((2, 30))
    alone = spearman(x, y, np.arange(30), seed=1)
    copied = spearman(np.tile(x, 8), np.tile(y, 8), np.tile(np.arange(30), 8), seed=1)
    fooled = spearman(np.tile(x, 8), np.tile(y, 8), np.arange(240), seed=1)
    assert copied == pytest.approx(alone)
    assert fooled.high - fooled.low < 0.6 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 20))
    assert spearman(x, y, np.arange(20), seed=3) == spearman(x, y, np.arange(20), seed=3)
    assert spearman(x, y, np.arange(20), seed=3) != spearman(x, y, np.arange(20), seed=4)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, np.nan, 2.0], [1.0, 2.0, 3.0])],
    ids=["two", "constant", "nan"],
)
def test_no_correlation_where_none_is_defined(x: list[float], y: list[float]) -> None:
    assert spearman(np.array(x), np.array(y), np.arange(len(x)), seed=0) is None


def test_is_fast() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 512))
    start = time.process_time()
    spearman(x, y, np.arange(512), seed=0)
    assert time.process_time() - start < 2
