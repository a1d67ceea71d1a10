"""Relaxation: never empty, depth from the inside out, straight-through, noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aptp.core.anatomy import Part
from aptp.core.architecture import SearchSpace
from aptp.core.options import RelaxationOptions
from aptp.core.relaxation import Relaxation

SPACE = SearchSpace(
    tuple(
        part
        for i in range(5)
        for part in (Part(f"b{i}", "block", 1), Part(f"b{i}.w", "attention_heads", 3, inside=(f"b{i}",)))
    )
)
draws = {"seed": st.integers(0, 10**6), "scale": st.sampled_from([0.0, 1.0, 10.0, 1e4])}
noises = st.sampled_from(["logistic", "gumbel"])


def relaxation(**options) -> Relaxation:
    return Relaxation(SPACE, RelaxationOptions(**options))


def draw(seed: int, scale: float = 1.0, rows: int = 4) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, SPACE.num_gates, generator=generator), generator


@given(**draws, noise=noises, offset=st.floats(-5, 5))
def test_no_width_site_goes_empty(seed, scale, noise, offset):
    logits, generator = draw(seed, scale)
    gates = relaxation(noise=noise, offset=offset).sample(logits, generator)
    assert ((gates == 0) | (gates == 1)).all()
    for site, place in zip(SPACE.sites, SPACE.slices, strict=True):
        assert site.is_block or gates[:, place].sum(-1).min() >= 1


@given(**draws, noise=noises, hard=st.booleans())
def test_depth_goes_from_the_inside_out(seed, scale, noise, hard):
    logits, generator = draw(seed, scale)
    for gates in (
        relaxation(noise=noise, hard=hard).sample(logits, generator),
        relaxation(noise=noise).soft(logits),
    ):
        along = gates[:, SPACE.depth_order]
        assert (along.diff(dim=-1) <= 1e-6).all(), "up to rounding"


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, 100.0, 1e6, 1e30]))
def test_large_logits_are_safe(seed, scale):
    logits, generator = draw(seed, scale)
    logits.requires_grad_()
    for gates in (relaxation().sample(logits, generator), relaxation().soft(logits)):
        assert gates.isfinite().all()
        (slope,) = torch.autograd.grad(gates.sum(), logits)
        assert slope.isfinite().all()


@given(seed=st.integers(0, 10**6))
def test_straight_through_is_hard_in_value_and_soft_in_gradient(seed):
    logits, _ = draw(seed)
    logits.requires_grad_()
    soft = relaxation().soft(logits)
    hard = relaxation().straight_through(soft)
    assert ((hard == 0) | (hard == 1)).all()
    weight = torch.randn_like(soft)
    for mine, expected in zip(
        torch.autograd.grad((hard * weight).sum(), logits, retain_graph=True),
        torch.autograd.grad((soft * weight).sum(), logits),
        strict=True,
    ):
        assert torch.equal(mine, expected)


def test_every_logit_learns():
    logits, _ = draw(0)
    logits.requires_grad_()
    hard = relaxation().straight_through(relaxation().soft(logits))
    (slope,) = torch.autograd.grad((hard * torch.randn(SPACE.num_gates)).sum(), logits)
    assert (slope[:, SPACE.width_gates] != 0).all()
    assert (slope[:, SPACE.depth_order] != 0).all()


@pytest.mark.parametrize(("noise", "probability"), [("logistic", 0.5), ("gumbel", 1 - torch.e**-1)])
def test_a_unit_at_its_threshold(noise, probability):
    """Without offset a logit of 0 is at the threshold: one Gumbel turns it on 63% of the time, a logistic 50%."""
    space = SearchSpace(tuple(Part(f"s{i}", "resnet_channels", 64) for i in range(50)))
    made = Relaxation(space, RelaxationOptions(noise=noise, offset=0.0))
    gates = made.sample(torch.zeros(20, space.num_gates), torch.Generator().manual_seed(0))
    assert gates.mean().item() == pytest.approx(probability, abs=0.01)
    assert (made.soft(torch.zeros(1, space.num_gates)) == 0.5).all()


@pytest.mark.parametrize(("noise", "law"), [("logistic", stats.logistic), ("gumbel", stats.gumbel_r)])
def test_noise_is_added_to_logits_and_falls_as_the_search_goes_on(noise, law):
    logits = draw(4, rows=2000)[0].double()

    def added(progress: float, **options) -> torch.Tensor:
        made = relaxation(noise=noise, hard=False, temperature=8.0, **options)
        sampled = made.sample(logits, torch.Generator().manual_seed(1), progress)
        return 8.0 * (sampled.logit() - made.soft(logits).logit())

    first = added(0.0)
    width, order = first[:, SPACE.width_gates], SPACE.depth_order
    assert stats.kstest(width.flatten(), law.cdf).pvalue > 0.01
    shared = first[:, order[1:]]  # the outermost is at the clamp
    torch.testing.assert_close(shared, shared[:, :1].expand_as(shared), msg="one draw for all blocks of a row")
    assert stats.kstest(shared[:, 0], law.cdf).pvalue > 0.01
    for progress in (0.25, 1.0):
        torch.testing.assert_close(added(progress), (1 - progress) * first)
        torch.testing.assert_close(added(progress, anneal=False), first)


def test_width_follows_its_formula():
    logits, _ = draw(1)
    width = SPACE.width_gates
    expected = torch.sigmoid((logits[:, width] + 2.0) / 0.4)
    torch.testing.assert_close(relaxation(offset=2.0, temperature=0.4).soft(logits)[:, width], expected)


def test_depth_follows_its_formula():
    logits, _ = draw(2, rows=1)
    order = SPACE.depth_order.tolist()
    v = logits[0, order].double().softmax(0)
    gates = relaxation(depth_offset=1.0, temperature=0.5).soft(logits)[0, order]
    for place in range(1, len(order)):  # the outermost is at the clamp
        q = v[: len(order) - place].sum()
        assert gates[place].item() == pytest.approx(torch.sigmoid((q.logit() + 1.0) / 0.5).item(), rel=1e-4)
    assert gates[0] > 0.999


def test_soft_gates_draw_nothing_and_samples_follow_their_generator():
    logits, _ = draw(3)
    state = torch.get_rng_state()
    assert torch.equal(relaxation().soft(logits), relaxation().soft(logits))
    first, again, other = (
        relaxation(hard=False).sample(logits, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@given(**draws, hard=st.booleans())
def test_aligned_widths_come_and_go_together(seed, scale, hard):
    sites = tuple(dataclasses.replace(site, channels=10 * site.units) for site in SPACE.sites)
    space = SearchSpace(sites, align=20)
    logits, generator = draw(seed, scale)
    logits.requires_grad_()
    gates = Relaxation(space, RelaxationOptions(hard=hard)).sample(logits, generator)
    for site, place in zip(space.sites, space.slices, strict=True):
        if not site.is_block:
            first, second, third = gates[:, place].sort(-1, descending=True).values.unbind(-1)
            torch.testing.assert_close(first, second)
            assert (third <= second + 1e-6).all()
    gates.sum().backward()
    assert logits.grad.isfinite().all()
