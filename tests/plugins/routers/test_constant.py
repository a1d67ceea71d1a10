"""The constant router: one code for every prompt."""

from __future__ import annotations

import pytest
import torch

from aptp.core.errors import RequestError
from aptp.core.options import RelaxationOptions
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, RouterContext, margins, serve
from aptp.plugins.balancers.none import NoBalancer
from aptp.plugins.routers.constant import ConstantRouter
from aptp.testing import check_router, tiny_cost_model, tiny_space, tiny_unet


def context(experts: int) -> RouterContext:
    unet = tiny_unet("sd2")
    space = tiny_space(unet)
    prompts = PromptBatch(["a", "b", "c"], torch.eye(3))
    balancer, relaxation = NoBalancer(NoBalancer.Options()), Relaxation(space, RelaxationOptions())
    return RouterContext(space, experts, balancer, tiny_cost_model(unet, space), relaxation, prompts, 10)


def router() -> ConstantRouter:
    return ConstantRouter(ConstantRouter.Options())


def test_conforms() -> None:
    check_router(router, NoBalancer(NoBalancer.Options()), num_experts=1)


def test_refuses_several_experts() -> None:
    with pytest.raises(RequestError, match=r"serves one expert, not 3"):
        router().setup(context(3))


def test_every_prompt_gets_the_one_code_and_trains_it() -> None:
    constant, around = router(), context(1)
    constant.setup(around)
    routing = constant(around.prompts, step=0, generator=torch.Generator().manual_seed(0))
    assert routing.index.tolist() == [0, 0, 0]
    around.cost_model.fraction(routing.gates).mean().backward()
    assert constant.code_logits.grad.abs().sum() > 0


def test_serves_without_a_margin() -> None:
    constant, around = router(), context(1)
    constant.setup(around)
    scores = constant.scores(around.prompts)
    assert serve(scores, torch.zeros(1)).tolist() == [0, 0, 0]
    assert margins(scores, torch.zeros(1)).isinf().all()
