"""The table of codes: how it starts, and who trains it."""

from __future__ import annotations

import pytest
import torch

from aptp.core.codes import gate_by_codes, starting_logits
from aptp.core.options import RelaxationOptions
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, RouterContext
from aptp.plugins.balancers.none import NoBalancer
from aptp.testing import tiny_cost_model, tiny_space, tiny_unet


def context(experts: int = 4, seed: int = 0) -> RouterContext:
    space = tiny_space(unet := tiny_unet("sd2"))
    relaxation, nobody = Relaxation(space, RelaxationOptions()), PromptBatch([], torch.zeros(0, 3))
    balancer = NoBalancer(NoBalancer.Options())
    return RouterContext(space, experts, balancer, tiny_cost_model(unet, space), relaxation, nobody, 10, seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_spread_orders_the_codes_by_cost(seed: int) -> None:
    around = context(seed=seed)
    soft = around.relaxation.soft(starting_logits(around, noise=1.0, spread=2.0).double())
    costs = around.cost_model.fraction((soft >= soft.median()).double())
    assert torch.equal(costs, costs.sort().values)
    assert costs[-1] - costs[0] > 0.1


def test_the_start_is_the_seed_s() -> None:
    start = starting_logits(context(), 0.1)
    assert torch.equal(start, starting_logits(context(), 0.1))
    assert not torch.equal(start, starting_logits(context(seed=1), 0.1))
    assert start.std() == pytest.approx(0.1, rel=0.1)


def test_one_code_has_no_spread() -> None:
    torch.testing.assert_close(starting_logits(context(1), 0.1, spread=9.0), starting_logits(context(1), 0.1))


def test_a_prompt_trains_its_own_code_only() -> None:
    around = context()
    logits = torch.zeros(4, around.space.num_gates, requires_grad=True)
    scores = torch.eye(4)[[2, 0, 2]]
    routing = gate_by_codes(around, logits, scores, step=0, generator=torch.Generator().manual_seed(0))
    assert routing.index.tolist() == [2, 0, 2]
    around.cost_model.fraction(routing.gates).sum().backward()
    assert logits.grad.abs().sum(1).gt(0).tolist() == [True, False, True, False]
