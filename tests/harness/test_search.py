"""The search: codes near the budget, and calibrated onto it."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch

from aptp.core.gates import gated
from aptp.core.router import serve
from aptp.harness import run, training
from aptp.harness.recover import make_experts
from aptp.harness.search import search
from aptp.harness.workspace import Workspace
from aptp.host import default_host

LEARNED = {"name": "constant"}


def costs(work: Workspace) -> list[float]:
    return [json.loads(line)["cost"] for line in work.path("logs/search.jsonl").read_text().splitlines()]


def test_the_cost_of_the_steps_nears_the_target(open_work) -> None:
    only = {"denoising": 0.0, "distillation": 0.0, "blocks": 0.0}
    settings = {"steps": 40, "batch": 2, "rate": 0.1, "spread": 0.0, "weights": only, "start": None}
    work = open_work(experts=1, router=LEARNED, balancer="none", search=settings, budget=0.6)
    answer = search(work)
    spent = costs(work)
    assert spent[0] > 0.75
    assert sum(spent[-10:]) / 10 == pytest.approx(0.6, abs=0.06)
    assert answer.uncalibrated == pytest.approx(0.6, abs=0.1)
    assert answer.expected == pytest.approx(0.6, rel=0.01)


def test_the_router_takes_the_gradient_of_the_whole_loss(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one backward pass gives it that goes through denoiser and gates into the router at once."""
    weights = {"denoising": 0.5, "distillation": 2.0, "blocks": 0.25}
    options = {"steps": 1, "batch": 4, "accumulate": 2, "resource": 0.7, "spread": 0.3, "weights": weights}
    work = open_work(search=options, router={"name": "contrastive", "warmup": 0.0}, distill={"block_scale": "none"})
    caught: dict[str, torch.Tensor] = {}

    def step(optimizer: torch.optim.Optimizer) -> None:
        caught.update({name: value.grad.clone() for name, value in work.router.named_parameters()})

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    search(work)

    work.router.zero_grad()
    index = training.batch_index(len(work.train), 4, 0, work.config.seed, "search")
    generator = training.generator_for(work.config.seed, "search", 0)
    example = work.noiser(work.train.latents_of(index, generator), work.train.text_states(index), generator)
    routing = work.router(work.train.prompts(index), step=0, generator=generator, timesteps=example.timesteps)
    taught = work.distiller.teach(example, work.config.search.weights)
    with gated(work.dense, work.space, routing.gates):
        terms = work.distiller.terms(work.dense, example, taught)
    mean_cost = work.cost_model.fraction(routing.gates).mean()
    costs = work.cost_model.fraction(work.router_context.relaxation.straight_through(work.router.codes()))
    of_costs = 0.7 * (mean_cost / 0.7).log().abs() + 0.3 * (1 - costs.max() - costs.std(correction=0))
    of_student = 0.5 * terms["denoising"] + 2.0 * terms["distillation"] + 0.25 * terms["blocks"]
    (of_student + of_costs + sum(routing.losses.values())).backward()
    assert caught.keys() == {"predictor.weight", "predictor.bias", "code_logits"}
    for name, value in work.router.named_parameters():
        assert value.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(caught[name], value.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(("code_rate", "moved"), [(0.4, 0.4), (None, 0.05)])
@pytest.mark.parametrize("router", default_host().specs("router"))
def test_codes_have_a_rate_of_their_own(
    open_work, monkeypatch: pytest.MonkeyPatch, router: str, code_rate: float | None, moved: float
) -> None:
    options = {"steps": 1, "batch": 4, "start": None, "rate": 0.05, "code_rate": code_rate}
    weights = {"name": router} | ({"warmup": 0.0} if router == "contrastive" else {})
    experts = 1 if router == "constant" else 3
    work = open_work(search=options, router=weights, experts=experts, balancer="none", compare=[])
    if not work.router.learns:
        pytest.skip("it learns nothing")
    begun: dict[str, torch.Tensor] = {}
    step = torch.optim.AdamW.step

    def spy(optimizer: torch.optim.Optimizer) -> None:
        begun.update({name: value.detach().clone() for name, value in work.router.named_parameters()})
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    search(work)
    for name, value in work.router.named_parameters():
        rate = moved if name == "code_logits" else 0.05
        assert float((value.detach() - begun[name]).abs().max()) == pytest.approx(rate, rel=1e-3), name


def test_experts_are_the_thresholded_codes_as_they_are_served(open_work) -> None:
    work = open_work(search={"steps": 5, "batch": 8})
    answer = search(work)
    codes = work.router.codes()
    hard = (codes >= answer.threshold).float()
    kept = torch.stack([architecture.gates for architecture in answer.architectures])
    assert ((kept - hard) >= 0).all(), "only a unit that a site needs is added"
    assert (kept - hard).sum() <= len(answer.architectures) * len(work.space.sites)
    route = serve(work.scores(work.train), answer.bias)
    assert torch.equal(answer.load, route.bincount(minlength=3).double() / len(route))
    assert torch.equal(answer.bias, work.router_context.balancer.serving_bias(work.scores(work.train)))
    assert answer.expected == pytest.approx(float((work.cost_model.fraction(kept) * answer.load).sum()))


def test_an_aligned_search_ends_on_aligned_experts(open_work) -> None:
    chosen = {"name": "width-depth", "blocks": "all", "align": 8}
    work = open_work(granularity=chosen, search={"steps": 5, "batch": 8})
    answer = search(work)
    assert {1, 2} <= set(work.space.strides)
    for architecture in answer.architectures:
        widths = [
            (site, len(kept) * site.channels // site.units)
            for site, kept in zip(work.space.sites, architecture.kept, strict=True)
            if not site.is_block
        ]
        assert all(width % 8 == 0 or width == site.channels for site, width in widths)
        assert any(width < site.channels for site, width in widths)
    assert answer.expected == pytest.approx(0.7, rel=0.03)


def test_the_denoiser_does_not_change(open_work) -> None:
    work = open_work(search={"steps": 2, "batch": 4})
    before = {name: value.clone() for name, value in work.dense.state_dict().items()}
    search(work)
    assert all(torch.equal(before[name], value) for name, value in work.dense.state_dict().items())
    assert all(parameter.grad is None for parameter in work.dense.parameters())


def test_a_search_on_mirror_images_goes_on_as_it_would_have(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))

    def log(out: str, flips: bool = True, stop: int = 5) -> str:
        work = open_work(out, prepare={"flips": flips}, search={"steps": 5, "batch": 8})
        work.train = work.preparer.pictures(work.chosen.train, work.dataset.fingerprint(), "training", flips)

        def ended(stage: str, step: int, total: int, values: dict[str, float]) -> None:
            if step == stop:
                raise KeyboardInterrupt

        work.step_ended = ended
        with suppress(KeyboardInterrupt):
            search(work)
        return work.path("logs/search.jsonl").read_text()

    whole = log("whole")
    assert log("stopped", stop=2) != whole
    assert log("stopped") == whole
    assert log("plain", flips=False) != whole


def test_a_static_pruner_needs_no_step(open_work) -> None:
    work = open_work(experts=1, router=LEARNED, balancer="none", pruner="magnitude")
    answer = search(work)
    assert len(answer.architectures) == 1
    assert answer.expected == pytest.approx(0.7, rel=0.03)
    assert not work.path("logs/search.jsonl").exists()


def test_a_router_that_learns_nothing_needs_no_step(open_work) -> None:
    work = open_work(router="random-codes", balancer="none")
    answer = search(work)
    assert len(answer.architectures) == 3
    assert answer.expected == pytest.approx(work.config.budget.target, rel=0.01)
    assert not work.path("logs/search.jsonl").exists()
    assert torch.equal(answer.load, search(open_work("again", router="random-codes", balancer="none")).load)


def test_what_was_decided_before_experts_were_sliced_is_not_decided_again(open_work) -> None:
    """As on another machine, where clusters and near ties may fall out otherwise."""
    work = open_work(router="random-codes", balancer="none")
    first = search(work)
    make_experts(work, first)
    fractions = [float(work.cost_model.fraction(each.gates)) for each in first.architectures]
    run.__globals__["_save_router"](work, first, fractions)
    again = open_work(router="random-codes", balancer="none")
    with torch.no_grad():
        again.router.clusters.centres.copy_(again.router.clusters.centres.flip(0))
        again.router.code_logits.add_(1)
    second = search(again)
    assert torch.equal(second.bias, first.bias)
    assert torch.equal(second.load, first.load)
    assert second.expected == pytest.approx(first.expected)
    for one, other in zip(second.architectures, first.architectures, strict=True):
        assert torch.equal(one.gates, other.gates)
    assert torch.equal(again.scores(again.train), work.scores(work.train))


def test_a_search_that_ends_far_from_the_target_says_so(open_work) -> None:
    work = open_work(search={"steps": 2, "batch": 4, "start": None}, budget=0.6)
    answer = search(work)
    assert abs(answer.uncalibrated / 0.6 - 1) > 0.05
    assert [text for text in work.record.warnings if f"ended at {answer.uncalibrated:.3f}" in text]


@pytest.mark.parametrize(("bias", "used"), [((1e6, 0.0, 0.0), "1.0"), ((0.0, 0.0, -1e6), "2.0"), (None, None)])
def test_a_search_whose_prompts_go_to_few_experts_says_so(
    bias: tuple[float, ...] | None, used: str | None, open_work, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = open_work(router="random-codes", balancer="sinkhorn")
    if bias:
        monkeypatch.setattr(work.router_context.balancer, "serving_bias", lambda scores: torch.tensor(bias).double())
    search(work)
    told = [text for text in work.record.warnings if text.startswith("in effect only")]
    assert len(told) == (used is not None)
    assert all(text.startswith(f"in effect only {used} of 3 experts serve the training prompts.") for text in told)


def test_without_distillation_nobody_asks_the_teacher(open_work) -> None:
    calls: list[int] = []
    alone = {"denoising": 1.0, "distillation": 0.0, "blocks": 0.0}
    work = open_work(search={"steps": 3, "batch": 4, "weights": alone, "start": None})
    handle = work.dense.register_forward_hook(lambda *_: calls.append(1))
    search(work)
    handle.remove()
    assert len(calls) == 3, "the gated model, which is the student"
    lines = [json.loads(line) for line in work.path("logs/search.jsonl").read_text().splitlines()]
    assert all("denoising" in line and "distillation" not in line for line in lines)
