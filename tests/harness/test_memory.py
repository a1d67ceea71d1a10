"""Micro-batches, recomputed activations and bf16: what saves memory leaves the losses and the routes as they are."""

from __future__ import annotations

import json
import weakref

import pytest
import torch

from aptp.config import RunConfig
from aptp.core.gates import gated
from aptp.core.objective import block_variances, moments_of
from aptp.harness.recover import make_experts, recover
from aptp.harness.search import Found, search
from aptp.harness.training import Distiller, recomputing
from aptp.harness.workspace import Workspace
from aptp.testing import tiny_inputs, tiny_unet

SHORT = {"search": {"steps": 4, "batch": 8, "start": {"name": "magnitude"}}, "recover": {"steps": 4, "batch": 8}}
"""Their start looks at no loss, which precision would change."""


def learned(work: Workspace) -> tuple[Found, list[dict[str, float]]]:
    """What a search and a recovery find, and the figures of each of their steps."""
    found = search(work)
    make_experts(work, found)
    recover(work, found.architectures, found.bias)
    logs = (work.path(f"logs/{stage}.jsonl").read_text() for stage in ("search", "recover"))
    steps = [json.loads(line) for log in logs for line in log.splitlines()]
    return found, [{name: value for name, value in step.items() if isinstance(value, float)} for step in steps]


@pytest.fixture
def plain(open_work) -> tuple[Found, list[dict[str, float]]]:
    return learned(open_work("plain", **SHORT))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"search": {"accumulate": 4}, "recover": {"accumulate": 2}}, {"rel": 1e-4, "abs": 2e-6}),
        ({"checkpointing": True}, {"rel": 0.0, "abs": 0.0}),
        (
            {"precision": "bf16", "checkpointing": True, "search": {"accumulate": 2}, "recover": {"accumulate": 2}},
            {"rel": 0.05, "abs": 1e-3},
        ),
    ],
)
def test_losses_and_routes_stay(open_work, plain, changes: dict, tolerance: dict) -> None:
    settings = {stage: SHORT[stage] | changes.get(stage, {}) for stage in SHORT}
    found, steps = learned(open_work("changed", **changes | settings))
    assert len(steps) == len(plain[1]) == 8
    for step, other in zip(plain[1], steps, strict=True):
        assert other == pytest.approx(step, **tolerance)
    assert torch.equal(found.load, plain[0].load)
    if "precision" not in changes:
        assert all(
            torch.equal(one.gates, other.gates)
            for one, other in zip(plain[0].architectures, found.architectures, strict=True)
        )


def test_guided_recovery_is_the_same_in_micro_batches(open_work) -> None:
    settings = {**SHORT, "recover": {**SHORT["recover"], "guidance": 3.0}}
    _, steps = learned(open_work("guided", **settings))
    _, others = learned(open_work("parts", **settings | {"recover": settings["recover"] | {"accumulate": 2}}))
    for step, other in zip(steps, others, strict=True):
        assert other == pytest.approx(step, rel=1e-4, abs=2e-6)


def test_adaptation_is_the_same_in_micro_batches(open_work) -> None:
    from aptp.harness.adapt import adapt
    from aptp.models import load_pipeline

    losses = []
    for name, changes in (("plain", {}), ("parts", {"checkpointing": True})):
        work = open_work(
            name, adapt={"steps": 3, "batch": 4, "rate": 1e-3, "accumulate": 2 if changes else 1}, **changes
        )
        work.pipeline = load_pipeline(work.config.model, work.device)
        adapt(work, list(work.dataset.samples("train"))[:8], "eight")
        losses.append([json.loads(line)["loss"] for line in work.path("logs/adapt.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_recomputing_blocks_keep_their_gates(open_work) -> None:
    """The gates' gradient is that of a model that keeps its activations, and nothing stays behind."""
    work = open_work()
    unet, slopes = tiny_unet("sd2", cross_attention_dim=16), []
    inputs = tiny_inputs(unet, 2)
    for wanted in (False, True):
        gates = torch.full((2, work.space.num_gates), 0.7, requires_grad=True)
        with recomputing(unet, wanted), gated(unet, work.space, gates):
            unet(**inputs).sample.square().mean().backward()
        slopes.append(gates.grad)
    assert slopes[0].abs().min() > 0
    torch.testing.assert_close(slopes[1], slopes[0])
    assert not unet.is_gradient_checkpointing


def test_the_variance_of_parts_is_that_of_the_whole() -> None:
    whole = {name: torch.randn(6, 3, 4) * scale + 5 for name, scale in (("a", 1.0), ("b", 100.0))}
    parts = [{name: seen[start : start + 2] for name, seen in whole.items()} for start in (0, 2, 4)]
    expected = torch.stack([seen.double().var() for seen in whole.values()])
    torch.testing.assert_close(block_variances([moments_of(part) for part in parts]), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(block_variances([moments_of(whole)]), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", ["variance", "none"])
def test_of_micro_batches_the_teacher_s_answers_are_not_kept(open_work, monkeypatch, scale: str) -> None:
    work = open_work(**SHORT | {"search": {"steps": 2, "batch": 8, "accumulate": 4}, "distill": {"block_scale": scale}})
    said: list[weakref.ref] = []
    teach, terms, most = Distiller.teach, Distiller.terms, []

    def spy(self, example, weights):
        taught = teach(self, example, weights)
        said.append(weakref.ref(taught.answer))
        return taught

    def count(self, *args):
        most.append(sum(answer() is not None for answer in said))
        return terms(self, *args)

    monkeypatch.setattr(Distiller, "teach", spy)
    monkeypatch.setattr(Distiller, "terms", count)
    search(work)
    assert most == [1] * 8
    assert len(said) == (16 if scale == "variance" else 8)


def test_blocks_without_a_weight_are_not_watched(open_work, monkeypatch) -> None:
    weights = {"denoising": 1.0, "distillation": 1.0, "blocks": 0.0}
    work = open_work(search={"steps": 2, "batch": 4, "weights": weights})
    teach, kept = Distiller.teach, []

    def spy(self, example, weights):
        taught = teach(self, example, weights)
        kept.append(taught.blocks)
        return taught

    monkeypatch.setattr(Distiller, "teach", spy)
    search(work)
    assert kept == [{}, {}]


def test_parts_have_to_be_equal() -> None:
    with pytest.raises(ValueError, match="batch 8 is not divided by accumulate 3; choose a multiple"):
        RunConfig.model_validate({"search": {"batch": 8, "accumulate": 3}})
    with pytest.raises(ValueError, match="batch 12 is made of pairs; choose a multiple of 8"):
        RunConfig.model_validate({"recover": {"batch": 12, "accumulate": 4, "guidance": 3}})
