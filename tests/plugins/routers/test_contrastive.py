"""The contrastive router: its loss, the start of its codes, and that it does not collapse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aptp.core.options import RelaxationOptions
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, RouterContext, serve
from aptp.plugins.balancers.none import NoBalancer
from aptp.plugins.balancers.sinkhorn import SinkhornBalancer
from aptp.plugins.routers.contrastive import ContrastiveRouter
from aptp.testing import check_router, tiny_cost_model, tiny_space, tiny_unet


def sinkhorn() -> SinkhornBalancer:
    return SinkhornBalancer(SinkhornBalancer.Options())


def clustered(clusters: int, each: int, spread: float = 0.3, dim: int = 16) -> PromptBatch:
    """Prompts whose embeddings lie around a few directions."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(clusters, 1, dim, generator=generator)
    points = (centres + spread * torch.randn(clusters, each, dim, generator=generator)).flatten(0, 1)
    return PromptBatch([f"prompt {i}" for i in range(len(points))], F.normalize(points, dim=-1))


def make(prompts: PromptBatch, *, experts: int = 4, steps: int = 10, **options: Any) -> ContrastiveRouter:
    router = ContrastiveRouter(ContrastiveRouter.Options(**options))
    space = tiny_space(unet := tiny_unet("sd2"))
    relaxation = Relaxation(space, RelaxationOptions())
    router.setup(RouterContext(space, experts, sinkhorn(), tiny_cost_model(unet, space), relaxation, prompts, steps))
    return router


def step(router: ContrastiveRouter, prompts: PromptBatch, number: int):
    return router(prompts, step=number, generator=torch.Generator().manual_seed(number))


def softmax_of_others(similarity: Tensor, temperature: float) -> Tensor:
    return (similarity / temperature).fill_diagonal_(-torch.inf).softmax(-1)


@pytest.mark.parametrize("balancer", [sinkhorn(), NoBalancer(NoBalancer.Options())], ids=["sinkhorn", "none"])
def test_conforms(balancer) -> None:
    check_router(lambda: ContrastiveRouter(ContrastiveRouter.Options()), balancer)


def test_loss_is_the_cross_entropy_of_architectures_against_prompts() -> None:
    prompts = clustered(3, 4)
    router = make(prompts, weight=2.0, temperature=0.2, prompt_temperature=0.15)
    z, space = prompts.embeds, router.context.space
    logits = z @ router.predictor.weight.T
    architectures = space.features(router.context.relaxation.soft(logits))
    p = softmax_of_others(z @ z.T, 0.15)
    q = softmax_of_others(architectures @ architectures.T, 0.2)
    pairs = ~torch.eye(len(z), dtype=torch.bool)
    p, q = p[pairs], q[pairs]
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    torch.testing.assert_close(step(router, prompts, 0).losses["contrastive"], 2 * expected)


def test_the_paper_s_own_loss_counts_a_prompt_s_likeness_to_itself() -> None:
    prompts = clustered(3, 4)
    router = make(prompts, weight=1.0, temperature=0.2, prompt_temperature=0.15, diagonal=True)
    z, space = prompts.embeds, router.context.space
    architectures = space.features(router.context.relaxation.soft(z @ router.predictor.weight.T))
    p, q = (z @ z.T / 0.15).softmax(-1), (architectures @ architectures.T / 0.2).softmax(-1)
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    torch.testing.assert_close(step(router, prompts, 0).losses["contrastive"], expected)


@pytest.mark.parametrize("perplexity", [2.0, 8.0])
def test_temperature_meets_the_perplexity(perplexity: float) -> None:
    prompts = clustered(4, 16)
    router = make(prompts, perplexity=perplexity)
    z = prompts.embeds
    others = (z @ z.T)[~torch.eye(len(z), dtype=torch.bool)].view(len(z), -1)
    p = (others.double() / router._temperature_of(others)).softmax(-1)
    entropy = -(p * p.clamp(min=1e-300).log()).sum(-1).mean()
    assert float(entropy.exp()) == pytest.approx(perplexity, rel=0.01)


def test_codes_start_as_centres_of_what_the_predictor_says() -> None:
    prompts = clustered(4, 12)
    router = make(prompts, steps=10, warmup=0.2)
    for number in range(2):
        assert (step(router, prompts, number).index == -1).all()
        assert not router.code_logits.any()
    step(router, prompts, 2)
    logits = router.predictor(prompts.embeds).detach()
    nearest = torch.cdist(logits, router.code_logits.detach()).argmin(1)
    assert sorted(nearest.bincount(minlength=4).tolist()) == [12] * 4
    centres = torch.stack([logits[nearest == code].mean(0) for code in range(4)])
    torch.testing.assert_close(router.code_logits.detach(), centres, atol=1e-4, rtol=1e-3)


def test_a_step_is_left_to_the_codes_however_long_the_warm_up() -> None:
    prompts = clustered(4, 4)
    router = make(prompts, steps=3, warmup=1.0)
    answers = [step(router, prompts, number) for number in range(3)]
    assert (answers[1].index == -1).all()
    assert (answers[2].index >= 0).all()
    assert len(router.code_logits.unique(dim=0)) == 4


@pytest.mark.parametrize("experts", [2, 4, 8])
def test_no_collapse_with_sinkhorn(experts: int) -> None:
    prompts = clustered(experts, 64 // experts)
    router = make(prompts, experts=experts, steps=30)
    optimizer = torch.optim.AdamW(router.parameters(), lr=0.05)
    for number in range(30):
        routing = step(router, prompts, number)
        cost = router.context.cost_model.fraction(routing.gates).mean()
        loss = 2 * (cost / 0.6).log().abs() + sum(routing.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = router.scores(prompts)
    share = serve(scores, sinkhorn().serving_bias(scores)).bincount(minlength=experts) / len(prompts)
    assert float(torch.special.entr(share).sum().exp()) >= 0.75 * experts


@pytest.mark.parametrize("count", [1, 2])
def test_few_prompts_are_defined(count: int) -> None:
    prompts = clustered(4, 4)
    router = make(prompts, steps=4)
    for number in range(4):
        routing = step(router, prompts[range(count)], number)
        assert routing.gates.isfinite().all()
        loss = routing.gates.sum() + sum(routing.losses.values())
        loss.backward()
        assert loss.isfinite()
        assert routing.losses["contrastive"] == 0
    assert all(p.grad.isfinite().all() for p in router.parameters())


def test_one_prompt_repeated_is_defined_and_of_one_expert() -> None:
    one = clustered(4, 4)[[0] * 8]
    router = make(one, steps=4)
    for number in range(4):
        routing = step(router, one, number)
        assert sum(routing.losses.values()).isfinite()
    assert len(routing.index.unique()) == 1
    assert len(serve(router.scores(one), torch.zeros(4)).unique()) == 1


def test_codes_tell_apart_gates_that_are_all_open() -> None:
    router = make(clustered(4, 4))
    width = router.context.space.width_gates
    with torch.no_grad():
        router.code_logits.copy_(10 + torch.arange(router.code_logits.numel()).view_as(router.code_logits) / 1000)
    assert len(router.codes()[:, width].unique()) == 4 * int(width.sum())
