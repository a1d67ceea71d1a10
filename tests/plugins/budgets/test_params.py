"""Parameters of architectures are those of the sliced models."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aptp
from aptp.testing import MODELS


@functools.cache
def profiled(family: str, granularity: str):
    unet = MODELS[family]()
    space = aptp.search_space(unet, granularity=granularity)
    return unet, space, aptp.cost_model(unet, space, budget="params")


@pytest.mark.parametrize("granularity", ["width", "depth", "width-depth"])
@pytest.mark.parametrize("family", MODELS)
@given(keep=st.floats(0, 1), seed=st.integers(0, 1000))
def test_params_are_those_of_the_sliced_model(family, granularity, keep, seed):
    unet, space, costs = profiled(family, granularity)
    architecture = aptp.Architecture.random(space, keep, seed)
    sliced = aptp.slice(unet, space, architecture)
    assert costs.unit == "parameters"
    assert costs.cost(architecture.gates).item() == sum(p.numel() for p in sliced.parameters())
