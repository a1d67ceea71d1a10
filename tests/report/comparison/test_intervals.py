from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aptp.report.comparison.intervals import Interval, interval, paired, standing

FIGURES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=3, max_size=12)


@given(FIGURES)
def test_interval_is_scipys(figures: list[float]) -> None:
    found = interval(figures)
    assert found.n == len(figures)
    assert found.mean == pytest.approx(np.mean(figures), abs=1e-9)
    half = stats.sem(figures) * stats.t.ppf(0.975, len(figures) - 1)
    assert found.half == pytest.approx(half, rel=1e-9, abs=1e-9)


@given(FIGURES, st.floats(-1e3, 1e3))
def test_an_interval_moves_with_its_figures(figures: list[float], shift: float) -> None:
    found, moved = interval(figures), interval([figure + shift for figure in figures])
    assert moved.mean == pytest.approx(found.mean + shift, abs=1e-6)
    assert moved.half == pytest.approx(found.half, abs=1e-6)


def test_a_paired_interval_excludes_zero_where_the_paired_test_does() -> None:
    chance = np.random.default_rng(0)
    for _ in range(40):
        mine, others = chance.normal(0.5, 1, 6), chance.normal(0, 1, 6)
        found = paired(dict(enumerate(mine)), dict(enumerate(others)))
        expected = stats.ttest_rel(mine, others)
        low, high = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high))
        assert (found.above(0) or found.below(0)) == (expected.pvalue < 0.05)


@given(st.dictionaries(st.integers(0, 9), st.floats(-10, 10)), st.dictionaries(st.integers(0, 9), st.floats(-10, 10)))
def test_pairs_are_the_common_seeds_and_turn_with_the_sides(mine: dict, others: dict) -> None:
    found, turned = paired(mine, others), paired(others, mine)
    if not mine.keys() & others.keys():
        assert found is turned is None
    else:
        assert found.n == turned.n == len(mine.keys() & others.keys())
        assert found.mean == pytest.approx(-turned.mean)


@pytest.mark.parametrize(("figures", "n"), [([3.0, math.nan], 1), ([2.9999, 3.0001, math.inf], 2)])
def test_one_or_two_figures_have_no_interval_and_show_nothing(figures: list[float], n: int) -> None:
    few = interval(figures)
    assert few == Interval(3.0, None, n)
    assert (few.low, few.high) == (None, None)
    assert not few.above(0)
    assert standing(few, less=True) == "open"
    assert interval([math.inf]) is None


def test_standing_knows_which_direction_is_better() -> None:
    below, above, across = Interval(-2, 1, 3), Interval(2, 1, 3), Interval(0.5, 1, 3)
    assert [standing(each, less=True) for each in (below, above, across)] == ["better", "worse", "open"]
    assert [standing(each, less=False) for each in (below, above, across)] == ["worse", "better", "open"]
