"""No balancing: the nearest code."""

from __future__ import annotations

import torch

from aptp.plugins.balancers.none import NoBalancer
from aptp.testing import check_balancer


def test_conforms() -> None:
    check_balancer(NoBalancer(NoBalancer.Options()))


def test_takes_the_nearest_and_costs_nothing() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], requires_grad=True)
    answer = NoBalancer(NoBalancer.Options()).assign(scores, expert_marginals=torch.tensor([1.0, 0.0]))
    assert answer.index.tolist() == [1, 0, 1]
    assert answer.penalty == 0
    assert answer.plan is None
    assert not answer.penalty.requires_grad
