"""What a router is set up with, over a tiny U-Net."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aptp.core.balancer import Balancer
from aptp.core.options import RelaxationOptions
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, RouterContext
from aptp.plugins.balancers.none import NoBalancer
from aptp.testing import tiny_cost_model, tiny_space, tiny_unet

MakeContext = Callable[..., RouterContext]


@pytest.fixture(scope="session")
def make_context() -> MakeContext:
    """Makes contexts of ten steps for some training prompts."""
    space = tiny_space(unet := tiny_unet("sd2"))
    cost_model, relaxation = tiny_cost_model(unet, space), Relaxation(space, RelaxationOptions())

    def make(
        prompts: PromptBatch, experts: int = 3, *, seed: int = 0, balancer: Balancer | None = None
    ) -> RouterContext:
        balancer = balancer or NoBalancer(NoBalancer.Options())
        return RouterContext(space, experts, balancer, cost_model, relaxation, prompts, 10, seed)

    return make
