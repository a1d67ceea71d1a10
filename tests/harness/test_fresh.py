"""The published code's start: what slicing made smaller is initialised anew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.architecture import Architecture
from aptp.core.slicing import slice
from aptp.harness.fresh import changed, fresh_share, renew
from aptp.harness.workspace import Workspace


@given(keep=st.floats(0.2, 1), seed=st.integers(0, 99))
def test_what_kept_its_shape_keeps_its_values_and_the_rest_is_new(base: Workspace, keep: float, seed: int) -> None:
    architecture = Architecture.random(base.space, keep=keep, seed=seed)
    sliced, renewed = (slice(base.dense, base.space, architecture) for _ in range(2))
    renew(renewed, base.dense, seed)
    before, after = dict(sliced.named_parameters()), dict(renewed.named_parameters())
    assert before.keys() == after.keys()
    smaller = set(changed(sliced, base.dense))
    for name in before:
        assert before[name].shape == after[name].shape
        assert after[name].isfinite().all()
        if name not in smaller:
            assert torch.equal(before[name], after[name]), name
        elif before[name].ndim > 1:
            assert not torch.equal(before[name], after[name]), name
    values = sum(value.numel() for value in before.values())
    assert fresh_share(renewed, base.dense) == pytest.approx(sum(before[n].numel() for n in smaller) / values)


def test_new_values_are_those_of_torch_s_layers(base: Workspace) -> None:
    expert = slice(base.dense, base.space, Architecture.random(base.space, keep=0.5, seed=0))
    renew(expert, base.dense, 0)
    (name,) = [n for n in changed(expert, base.dense) if n.endswith("conv2.weight")][:1]
    weight = expert.get_parameter(name)
    bound = weight[0].numel() ** -0.5  # Kaiming's, as torch's layers have it
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_is_repeatable_and_leaves_the_global_state(base: Workspace) -> None:
    architecture = Architecture.random(base.space, keep=0.5, seed=0)
    first, same, other = (slice(base.dense, base.space, architecture) for _ in range(3))
    state = torch.get_rng_state()
    for expert, seed in ((first, 1), (same, 1), (other, 2)):
        renew(expert, base.dense, seed)
    assert torch.equal(state, torch.get_rng_state())
    name = changed(first, base.dense)[0]
    assert torch.equal(first.get_parameter(name), same.get_parameter(name))
    assert any(not torch.equal(first.get_parameter(n), other.get_parameter(n)) for n in changed(first, base.dense))


def test_the_dense_model_is_all_kept(base: Workspace) -> None:
    whole = slice(base.dense, base.space, Architecture.dense(base.space))
    renew(whole, base.dense, 0)
    assert fresh_share(whole, base.dense) == 0
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), base.dense.parameters(), strict=True))
