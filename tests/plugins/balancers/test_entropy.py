"""The entropy penalty: its value and where it pushes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aptp.plugins.balancers.entropy import EntropyBalancer
from aptp.testing import check_balancer


def entropy(**options: float) -> EntropyBalancer:
    return EntropyBalancer(EntropyBalancer.Options(**options))


def mean_and_own(scores: Tensor, temperature: float) -> tuple[float, float]:
    """Entropy of the mean assignment, and the mean of the prompts' own."""
    p = (scores / temperature).softmax(-1).double()
    mean = p.mean(0)
    return float(-(mean * mean.log()).sum()), float(-(p * p.log()).sum(-1).mean())


def test_conforms() -> None:
    check_balancer(entropy())


def test_value() -> None:
    scores = torch.randn(10, 3)
    mean, own = mean_and_own(scores, 0.5)
    answer = entropy(weight=3.0, temperature=0.5).assign(scores)
    assert float(answer.penalty) == pytest.approx(3 * (own - mean + math.log(3)), rel=1e-4)
    assert torch.equal(answer.index, scores.argmax(-1))
    assert answer.plan is None


def test_descent_uses_more_codes_and_is_surer_of_each() -> None:
    scores = 0.1 * torch.randn(32, 4) + torch.tensor([0.3, 0.0, 0.0, 0.0])
    scores.requires_grad_()
    before = mean_and_own(scores.detach(), 0.2)
    optimizer = torch.optim.Adam([scores], lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        entropy(temperature=0.2).assign(scores).penalty.backward()
        optimizer.step()
    after = mean_and_own(scores.detach(), 0.2)
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_marginals_and_weights_are_the_point_of_rest() -> None:
    sure = 50 * torch.eye(2)[[0, 0, 0, 1]]
    shares = torch.tensor([0.75, 0.25])
    assert float(entropy().assign(sure, expert_marginals=shares).penalty) == pytest.approx(0, abs=1e-5)
    even = torch.tensor([1.0, 1.0, 1.0, 3.0])
    assert float(entropy().assign(sure, prompt_weights=even).penalty) == pytest.approx(0, abs=1e-5)
    assert float(entropy().assign(sure).penalty) > 0.1
