"""Conformance of balancers, routers and prompt encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aptp.core.balancer import Balancer
from aptp.core.budget import CostModel
from aptp.core.encoder import PromptEncoder
from aptp.core.options import RelaxationOptions
from aptp.core.relaxation import Relaxation
from aptp.core.router import PromptBatch, Router, RouterContext, serve
from aptp.testing.models import tiny_cost_model, tiny_space, tiny_unet


def check_balancer(balancer: Balancer, *, relaxed: bool = False) -> None:
    """Defined for one prompt, one expert, ties and huge scores; keeps its plan's marginals; penalty differentiable.

    Args:
        relaxed: its plan may miss the codes' shares, as unbalanced transport does; the prompts' weights it must keep.
    """
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(12, 4, generator=generator)
    cases = {
        "scores": spread,
        "one prompt": spread[:1],
        "one expert": spread[:, :1],
        "ties": torch.zeros(8, 4),
        "one prompt repeated": spread[:1].repeat(8, 1),
        "huge scores": spread * 1e4,
        "float64": spread.double(),
    }
    for name, case in cases.items():
        scores = case.clone().requires_grad_()
        answer = balancer.assign(scores)
        batch, experts = scores.shape
        assert answer.index.shape == (batch,), name
        assert answer.index.dtype == torch.int64, name
        assert ((answer.index >= 0) & (answer.index < experts)).all(), name
        assert answer.penalty.ndim == 0, name
        assert answer.penalty.isfinite(), name
        if answer.penalty.requires_grad:
            (slope,) = torch.autograd.grad(answer.penalty, scores)
            assert slope.isfinite().all(), name
        bias = balancer.serving_bias(scores.detach())
        assert bias.shape == (experts,), name
        assert bias.isfinite().all(), name
        if answer.plan is not None:
            even = None if relaxed else torch.full((experts,), 1 / experts)
            _check_plan(answer.plan, torch.full((batch,), 1 / batch), even, name)
    shares, weights = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.rand(12, generator=generator) + 0.1
    answer = balancer.assign(spread, expert_marginals=shares, prompt_weights=weights)
    assert answer.penalty.isfinite()
    if answer.plan is not None:
        _check_plan(answer.plan, weights / weights.sum(), None if relaxed else shares, "given marginals")


def _check_plan(plan: Tensor, rows: Tensor, columns: Tensor | None, name: str) -> None:
    assert plan.isfinite().all(), name
    assert (plan >= 0).all(), name
    torch.testing.assert_close(plan.sum(1), rows.to(plan), atol=1e-3, rtol=0.02, msg=f"{name}: row sums")
    if columns is not None:
        torch.testing.assert_close(plan.sum(0), columns.to(plan), atol=1e-3, rtol=0.02, msg=f"{name}: column sums")


def check_router(make: Callable[[], Router], balancer: Balancer, num_experts: int = 3, steps: int = 6) -> None:
    """Trains for a few steps, serves each prompt by itself alone, and is restored by its state.

    Args:
        make: makes a fresh router; called twice.
        balancer: any balancer.
        num_experts: as many as the router can learn; one is tried as well.
    """
    unet = tiny_unet("sd2")
    space = tiny_space(unet)
    cost_model = tiny_cost_model(unet, space)
    for experts in {num_experts, 1}:
        context = RouterContext(
            space, experts, balancer, cost_model, Relaxation(space, RelaxationOptions()), _prompts(24), steps
        )
        router = make()
        router.setup(context)
        named = type(router).code_parameters
        assert isinstance(named, tuple), f"code_parameters is {named!r}; a tuple of names is right"
        if named != Router.code_parameters:
            assert set(named) <= {name for name, _ in router.named_parameters()}, f"no parameters are called {named}"
        _check_training(router, context, cost_model)
        _check_serving(router, context)
        _check_restoring(router, make(), context)


def _prompts(count: int) -> PromptBatch:
    embeds = torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    return PromptBatch([f"prompt {i}" for i in range(count)], embeds, [str(i) for i in range(count)])


def _check_training(router: Router, context: RouterContext, cost_model: CostModel) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes: Sequence[int] = (8, 1, 2)
    for step in range(context.steps):
        batch = context.prompts[range(sizes[step % len(sizes)])]
        routing = router(batch, step=step, generator=generator, timesteps=torch.full((len(batch),), 500))
        assert routing.gates.shape == (len(batch), context.space.num_gates)
        assert ((routing.gates >= 0) & (routing.gates <= 1)).all(), "gates outside [0, 1]"
        assert routing.index.shape == (len(batch),)
        assert ((routing.index >= -1) & (routing.index < context.num_experts)).all()
        loss = cost_model.fraction(routing.gates).mean() + sum(routing.losses.values())
        for name, value in routing.losses.items():
            assert value.ndim == 0, f"loss {name!r} is no scalar"
        assert loss.isfinite(), f"step {step}, batch of {len(batch)}: losses {routing.losses}"
        if router.learns:
            assert loss.requires_grad, f"step {step}: nothing of the loss reaches the router's parameters"
            optimizer = torch.optim.SGD(router.parameters(), lr=0.1)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in router.parameters()), f"step {step}"
            optimizer.step()


def _check_serving(router: Router, context: RouterContext) -> None:
    prompts, times = context.prompts, torch.full((len(context.prompts),), 500)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(1)).tolist()
    scores = router.scores(prompts, times)
    assert scores.shape == (len(prompts), context.num_experts)
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()
    alone = torch.cat([router.scores(prompts[[i]], times[:1]) for i in range(len(prompts))])
    for name, other in (("alone", alone[order]), ("permuted", router.scores(prompts[order], times))):
        torch.testing.assert_close(other, scores[order], atol=1e-9, rtol=0, msg=f"scores change when {name}")
    codes = router.codes()
    assert codes.shape == (context.num_experts, context.space.num_gates)
    assert ((codes >= 0) & (codes <= 1)).all(), "codes outside [0, 1]"


def _check_restoring(router: Router, fresh: Router, context: RouterContext) -> None:
    """Through safetensors, into a router that is set up as one that only serves."""
    from safetensors.torch import load, save

    no_prompts = PromptBatch([], context.prompts.embeds[:0])
    fresh.setup(
        RouterContext(context.space, context.num_experts, context.balancer, None, context.relaxation, no_prompts, 0)
    )
    state = {name: value.contiguous() for name, value in router.state_dict().items()}
    fresh.load_state_dict(load(save(state)))
    times = torch.full((len(context.prompts),), 500)
    bias = torch.zeros(context.num_experts)
    before, after = (serve(r.scores(context.prompts, times), bias) for r in (router, fresh))
    assert (before == after).all(), "routes change when the router is saved and loaded"
    assert torch.equal(router.codes(), fresh.codes())


def check_encoder(encoder: PromptEncoder) -> None:
    """Unit-length float32 rows on the CPU that depend on their own text alone; a fingerprint; long texts are cut."""
    texts = ["a red star", "the word STOP", "", "a " * 500, "a red star"]
    assert encoder.to(torch.device("cpu")) is encoder
    together = encoder.encode(texts)
    assert together.shape[0] == len(texts)
    assert together.dtype == torch.float32
    assert together.device.type == "cpu"
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(texts)), atol=1e-5, rtol=0)
    alone = torch.cat([encoder.encode([text]) for text in texts])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0, msg="an embedding depends on its batch")
    assert not torch.allclose(together[0], together[1], atol=1e-3), "different texts, equal embeddings"
    assert encoder.fingerprint() == encoder.fingerprint() != ""
