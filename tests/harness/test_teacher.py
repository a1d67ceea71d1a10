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
from aptp.harness.exam import Exam
from aptp.harness.teacher import cross, least_error, oracle
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
    assert 0 < found["least_teacher_error"] <= found["teacher_error"] == routed.teacher_error
    assert sum(finished.record.routing["cross"]["prompts"]) == len(base.exam)


def test_errors_are_those_of_the_whole_outputs(finished, base: Workspace) -> None:
    pipe, exam = aptp.load(finished.out, device="cpu"), base.exam
    marks = exam.marks(pipe)
    assert marks.shape == (len(exam), 3)
    said = base.denoiser.predict(pipe.expert(1), exam.example.diffused.noisy, exam.example.timesteps, exam.example.text)
    torch.testing.assert_close(marks[:, 1].float(), (said - exam.answer).square().mean((1, 2, 3)), atol=1e-5, rtol=1e-3)
    same = torch.ones(len(exam), dtype=torch.long)
    costs = torch.tensor(pipe.bundle.fractions, dtype=torch.float64)
    assert oracle(marks, costs, same)["teacher_error"] == pytest.approx(float(marks[:, 1].mean()))


def test_an_exam_is_as_large_as_asked_and_the_same_for_every_method(open_work) -> None:
    assert len(Exam.draw(open_work(evaluate={"exam": 5}))) == 5
    work = open_work(evaluate={"exam": 1000})
    assert len(work.exam) == len(work.validation), "no more than there are"
    assert work.exam is work.exam
    static = work.beside(work.config.static(work.config.compare[0]), work.path("baselines/magnitude"))
    assert static.exam is work.exam


def test_cross_routing_is_every_expert_on_every_cluster() -> None:
    errors = torch.tensor([[1.0, 5.0, 0.0], [3.0, 7.0, 0.0], [10.0, 20.0, 0.0]])
    found = cross(errors, torch.tensor([1, 1, 0]))
    assert found == {"teacher_error": [[10.0, 2.0, None], [20.0, 6.0, None], [0.0, 0.0, None]], "prompts": [1, 2, 0]}


@given(pictures=st.integers(1, 20), experts=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_diagonal_of_cross_routing_is_the_error_of_the_routes(pictures: int, experts: int, seed: int) -> None:
    errors, costs = cases(pictures, experts, seed)
    route = torch.randint(experts, (pictures,), generator=torch.Generator().manual_seed(seed))
    found = cross(errors, route)
    own = sum(n * found["teacher_error"][i][i] for i, n in enumerate(found["prompts"]) if n)
    assert own / pictures == pytest.approx(oracle(errors, costs, route)["teacher_error"])


def test_errors_that_are_no_numbers_are_left_out_of_the_record() -> None:
    errors = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    assert cross(errors, torch.tensor([0, 1]))["teacher_error"] == [[1.0, 2.0], [None, 3.0]]
