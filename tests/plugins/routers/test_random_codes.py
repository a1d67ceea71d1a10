"""Random codes: nothing learns, codes differ in capacity, routes are those of k-means."""

from __future__ import annotations

import pytest
import torch

from aptp.core.architecture import harden
from aptp.core.calibration import calibrate
from aptp.core.router import PromptBatch
from aptp.plugins.routers.kmeans import KMeansRouter
from aptp.plugins.routers.random_codes import RandomCodesRouter

EMBEDS = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = PromptBatch([f"prompt {i}" for i in range(20)], EMBEDS)


def router(context, **options: float) -> RandomCodesRouter:
    made = RandomCodesRouter(RandomCodesRouter.Options(**options))
    made.setup(context)
    return made


def test_there_is_nothing_to_learn(make_context) -> None:
    made = router(make_context(PROMPTS))
    assert not made.learns
    assert set(made.state_dict()) == {"clusters.centres", "code_logits"}
    routing = made(PROMPTS, step=0, generator=torch.Generator().manual_seed(0))
    assert not routing.gates.requires_grad


def test_routes_are_those_of_kmeans(make_context) -> None:
    kmeans = KMeansRouter(KMeansRouter.Options())
    kmeans.setup(make_context(PROMPTS))
    assert torch.equal(router(make_context(PROMPTS)).scores(PROMPTS), kmeans.scores(PROMPTS))


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_codes_meet_the_budget_and_differ_in_cost(make_context, seed: int) -> None:
    context = make_context(PROMPTS, 4, seed=seed)
    codes, load = router(context).codes(), torch.full((4,), 0.25)
    threshold = calibrate(context.cost_model, codes, load, 0.6)
    costs = context.cost_model.fraction(harden(context.space, codes, threshold))
    assert float(costs.mean()) == pytest.approx(0.6, abs=0.01)
    assert costs.max() - costs.min() > 0.1
    assert not torch.equal(codes, router(make_context(PROMPTS, 4, seed=seed + 1)).codes())
