"""Calibration meets the budget as nearly as the levels allow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.architecture import harden
from aptp.core.calibration import calibrate, expected_cost
from aptp.core.errors import RequestError
from aptp.testing import tiny_cost_model, tiny_space, tiny_unet

UNET = tiny_unet("sd2")
SPACE = tiny_space(UNET)
MODEL = tiny_cost_model(UNET, SPACE)


def drawn(seed: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    soft = torch.rand(experts, SPACE.num_gates, generator=generator)
    return soft, torch.rand(experts, generator=generator).softmax(0)


def level_at(soft: torch.Tensor, load: torch.Tensor, threshold: float) -> float:
    """The larger step of the expected cost to the levels on both sides of a threshold."""
    levels = [0.0, *soft.unique().tolist(), 2.0]
    place = levels.index(threshold)
    near = [expected_cost(MODEL, harden(SPACE, soft, t), load) for t in levels[max(place - 1, 0) : place + 2]]
    return max(a - b for a, b in pairwise(near))


@given(seed=st.integers(0, 10**6), experts=st.integers(1, 4), share=st.floats(0.05, 1.0))
def test_the_budget_is_met(seed, experts, share):
    soft, load = drawn(seed, experts)
    target = MODEL.floor + share * (1 - MODEL.floor)
    threshold = calibrate(MODEL, soft, load, target)
    error = abs(expected_cost(MODEL, harden(SPACE, soft, threshold), load) - target)
    assert error <= max(0.01 * target, level_at(soft, load, threshold) / 2 + 1e-12)


@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1.0), align=st.sampled_from([8, 16]))
def test_an_aligned_budget_is_met_within_half_a_level(seed, share, align):
    space = tiny_space(UNET, align)
    costs = tiny_cost_model(UNET, space)
    soft, load = drawn(seed, 2)
    target = costs.floor + share * (1 - costs.floor)
    found = expected_cost(costs, harden(space, soft, calibrate(costs, soft, load, target)), load)
    reached = [expected_cost(costs, harden(space, soft, t), load) for t in [0.0, *soft.unique().tolist(), 2.0]]
    assert abs(found - target) <= min(abs(cost - target) for cost in reached) + 1e-12
    above, below = (min([c for c in reached if c >= target], default=1), max([c for c in reached if c <= target]))
    assert abs(found - target) <= (above - below) / 2 + 1e-12


@given(seed=st.integers(0, 10**6), experts=st.integers(1, 3), bits=st.integers(1, 3))
def test_no_threshold_is_nearer(seed, experts, bits):
    soft, load = drawn(seed, experts)
    soft = (soft * 2**bits).round() / 2**bits  # many ties: few levels
    for target in (0.4, 0.7, 1.0):
        mine = calibrate(MODEL, soft, load, target)
        every = [0.0, *soft.unique().tolist(), 2.0]
        errors = {t: abs(expected_cost(MODEL, harden(SPACE, soft, t), load) - target) for t in [mine, *every]}
        assert errors[mine] <= min(errors.values()) + 1e-12


@given(seed=st.integers(0, 10**6), experts=st.integers(1, 3))
def test_cost_never_rises_with_the_threshold(seed, experts):
    soft, load = drawn(seed, experts)
    costs = [expected_cost(MODEL, harden(SPACE, soft, t), load) for t in torch.linspace(0, 1.1, 20).tolist()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(1.0)
    assert costs[-1] == pytest.approx(MODEL.floor)


def test_a_larger_budget_keeps_what_a_smaller_keeps():
    soft, load = drawn(0, 3)
    kept = [harden(SPACE, soft, calibrate(MODEL, soft, load, target)) for target in (0.4, 0.5, 0.7, 0.9, 1.0)]
    for smaller, larger in pairwise(kept):
        assert (smaller <= larger).all()


def test_an_expert_that_nobody_asks_for_counts_for_nothing():
    soft, _ = drawn(0, 2)
    load = torch.tensor([1.0, 0.0])
    costs = [
        expected_cost(MODEL, harden(SPACE, codes, calibrate(MODEL, codes, load, 0.6)), load)
        for codes in (soft, soft[[0, 0]])
    ]
    assert costs[0] == pytest.approx(costs[1], abs=1e-12)


@pytest.mark.parametrize("target", [0.0, -1.0, 1.01, float("nan")])
def test_what_is_no_fraction_is_refused(target):
    with pytest.raises(RequestError, match="fraction"):
        calibrate(MODEL, *drawn(0, 2), target)


def test_a_budget_under_the_floor_is_refused_with_the_floor():
    with pytest.raises(RequestError, match=f"{MODEL.floor:.3f}"):
        calibrate(MODEL, *drawn(0, 2), MODEL.floor / 2)
