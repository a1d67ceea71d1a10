"""The load-balancing loss: its value, its bounds, and where it pushes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.plugins.balancers.load import LoadBalancer
from aptp.testing import check_balancer


def load(**options: float) -> LoadBalancer:
    return LoadBalancer(LoadBalancer.Options(**options))


def test_conforms() -> None:
    check_balancer(load())


@given(batch=st.integers(1, 30), experts=st.integers(1, 8), seed=st.integers(0, 999))
def test_value_is_that_of_the_paper(batch: int, experts: int, seed: int) -> None:
    scores = torch.randn(batch, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = 0.0
    for code in range(experts):
        nearest = sum(int(row.argmax()) == code for row in scores) / batch
        expected += nearest * float((scores / 0.5).softmax(-1)[:, code].mean())
    answer = load(weight=3.0, temperature=0.5).assign(scores)
    assert float(answer.penalty) == pytest.approx(3 * experts * expected)
    assert torch.equal(answer.index, scores.argmax(1))
    assert answer.plan is None


def test_it_is_one_where_codes_are_used_evenly_and_their_number_where_they_collapse() -> None:
    sure = 50 * torch.eye(4)
    assert float(load().assign(sure).penalty) == pytest.approx(1)
    assert float(load().assign(sure[[2] * 4]).penalty) == pytest.approx(4)


def test_marginals_and_weights_are_the_point_of_rest() -> None:
    sure = 50 * torch.eye(2)[[0, 0, 0, 1]]
    assert float(load().assign(sure, expert_marginals=torch.tensor([0.75, 0.25])).penalty) == pytest.approx(1)
    assert float(load().assign(sure, prompt_weights=torch.tensor([1.0, 1.0, 1.0, 3.0])).penalty) == pytest.approx(1)
    assert float(load().assign(sure).penalty) == pytest.approx(2 * (0.75**2 + 0.25**2))


def test_a_share_of_nothing_is_finite() -> None:
    scores = torch.randn(6, 3, requires_grad=True)
    penalty = load().assign(scores, expert_marginals=torch.tensor([0.5, 0.0, 0.5])).penalty
    penalty.backward()
    assert scores.grad.isfinite().all()


def test_descent_spreads_the_prompts() -> None:
    scores = 0.1 * torch.randn(64, 4) + torch.tensor([0.3, 0.0, 0.0, 0.0])
    before = scores.argmax(1).bincount(minlength=4)
    scores.requires_grad_()
    optimizer = torch.optim.SGD([scores], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        load().assign(scores).penalty.backward()
        optimizer.step()
    after = scores.argmax(1).bincount(minlength=4)
    assert before.max() > 50
    assert after.max() < 32
