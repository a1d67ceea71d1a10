"""The error of a routing, and the least that any could have."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aptp
from aptp.config import Choice
from aptp.harness.teacher import Exam, least_error, oracle, teacher_error
from aptp.harness.workspace import SHARED, Workspace


def cases(pictures: int, experts: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(pictures, experts, generator=generator, dtype=torch.float64)
    return errors, torch.rand(experts, generator=generator, dtype=torch.float64)


@given(pictures=st.integers(1, 5), experts=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_least_error_bounds_every_routing_of_its_cost(pictures: int, experts: int, seed: int) -> None:
    errors, costs = cases(pictures, experts, seed)
    for route in itertools.product(range(experts), repeat=pictures):
        chosen = torch.tensor(route)
        error = float(errors.gather(1, chosen[:, None]).mean())
        assert least_error(errors, costs, float(costs[chosen].mean())) <= error + 1e-9


@given(pictures=st.integers(1, 20), experts=st.integers(1, 5), seed=st.integers(0, 999))
def test_with_all_the_cost_in_the_world_each_picture_has_its_best(pictures: int, experts: int, seed: int) -> None:
    errors, costs = cases(pictures, experts, seed)
    assert least_error(errors, costs, float(costs.max())) == pytest.approx(float(errors.min(1).values.mean()))
    cheapest = int(costs.argmin())
    assert least_error(errors, costs, float(costs.min())) == pytest.approx(float(errors[:, cheapest].mean()), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12])
def test_small_errors_are_not_rounded_away(scale: float) -> None:
    errors, costs = cases(12, 3, 5)
    spent = float(costs.median())
    whole = least_error(errors, costs, spent)
    assert least_error(errors * scale, costs, spent) == pytest.approx(scale * whole, rel=1e-6)


def test_errors_that_are_no_numbers_have_no_least() -> None:
    errors, costs = cases(4, 2, 0)
    errors[1, 1] = torch.nan
    assert math.isnan(least_error(errors, costs, float(costs.max())))


def test_methods_beside_share_what_was_made_of_the_same_model(open_work) -> None:
    work = open_work()
    static = work.beside(work.config.static(Choice(name="magnitude")), work.path("baselines/magnitude"))
    assert static.pruner is not None
    assert work.pruner is None
    for name in SHARED:
        assert getattr(static, name) is getattr(work, name), name
    assert static.cost_model is work.cost_model
    assert static.router_context is not work.router_context
    work.forget_model()
    assert work.exam is not static.exam


def test_the_record_has_it(finished, base: Workspace) -> None:
    found, routed = finished.record.routing["oracle"], finished.record.results[1]
    assert found["teacher_error"] == pytest.approx(routed.teacher_error, rel=1e-5)
    assert 0 < found["least_teacher_error"] <= found["teacher_error"]


def test_errors_are_those_of_the_whole_outputs(finished, base: Workspace) -> None:
    pipe, exam = aptp.load(finished.out, device="cpu"), Exam.draw(base)
    rows = torch.arange(0, len(exam.index), 2)
    errors = exam.errors(pipe.expert(1), rows)
    said = base.denoiser.predict(pipe.expert(1), exam.example.diffused.noisy, exam.example.timesteps, exam.example.text)
    torch.testing.assert_close(
        errors.float(), (said - exam.answer).square().mean((1, 2, 3))[rows], atol=1e-5, rtol=1e-3
    )
    same = torch.ones(len(base.validation), dtype=torch.long)
    assert teacher_error(base, pipe, same) == pytest.approx(oracle(base, pipe, same)["teacher_error"], rel=1e-4)
