"""Recovery: who gets how many steps, and from what experts start."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref

import pytest
import torch
from safetensors.torch import load_file

from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.router import serve
from aptp.core.slicing import SHARED, load_expert, save_expert, slice
from aptp.harness.fresh import changed
from aptp.harness.recover import make_experts, recover
from aptp.harness.search import Found
from aptp.harness.training import batch_index
from aptp.harness.workspace import Workspace
from aptp.plugins.routers.contrastive import ContrastiveRouter


def found(work: Workspace, count: int, weights: dict | None = None) -> Found:
    architectures = [Architecture.random(work.space, keep=0.6, seed=seed) for seed in range(count)]
    even = torch.full((count,), 1 / count).double()
    return Found(architectures, torch.zeros(count).double(), 0.5, even, 0.7, 0.7, weights or {})


def expert(work: Workspace, index: int = 0) -> dict[str, torch.Tensor]:
    return load_expert(work.path(f"experts/{index:02d}")).state_dict()


def sliced(work: Workspace, architecture: Architecture) -> dict[str, torch.Tensor]:
    return slice(work.dense, work.space, architecture).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def send_all_to(work: Workspace, expert: int) -> torch.Tensor:
    """A serving bias under which every prompt goes to one expert."""
    bias = torch.zeros(work.config.experts).double()
    bias[expert] = 1e6
    return bias


def test_an_expert_starts_as_a_true_slice(open_work) -> None:
    work = open_work()
    begun = found(work, 3)
    make_experts(work, begun)
    for index, architecture in enumerate(begun.architectures):
        assert equal(expert(work, index), sliced(work, architecture))


def test_weights_that_a_pruner_updated_are_sliced(open_work) -> None:
    work = open_work()
    begun = found(work, 1, {"conv_in.bias": torch.full_like(work.dense.conv_in.bias, 7.0)})
    before = work.dense.conv_in.bias.clone()
    make_experts(work, begun)
    assert (expert(work)["conv_in.bias"] == 7).all()
    assert torch.equal(work.dense.conv_in.bias, before)
    with pytest.raises(RequestError, match=r"'conv_in\.bais', which is no weight"):
        make_experts(work, found(work, 1, {"conv_in.bais": before}))


def test_an_expert_that_serves_nobody_keeps_its_slice(open_work) -> None:
    work = open_work(experts=2, recover={"steps": 3, "joint": 0.0})
    begun = found(work, 2)
    make_experts(work, begun)
    recover(work, begun.architectures, send_all_to(work, 1))
    assert equal(expert(work, 0), sliced(work, begun.architectures[0]))
    assert not equal(expert(work, 1), sliced(work, begun.architectures[1]))
    lines = [json.loads(line) for line in work.path("logs/recover.jsonl").read_text().splitlines()]
    assert [line["expert"] for line in lines] == [1, 1, 1]


def test_an_expert_that_serves_few_and_gets_no_step_is_told_of(open_work) -> None:
    work = open_work(**SPLIT, recover={"steps": 1, "joint": 0.0})
    begun = found(work, 2)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(2).double())
    (expert,) = {line["expert"] for line in log_of(work)}
    (said,) = [text for text in work.record.warnings if "without a step" in text]
    assert said == f"experts that serve without a step of recovery: {1 - expert}; raise recover.steps."


@pytest.mark.parametrize("joint", [0.0, 1.0])
def test_guidance_teaches_each_picture_with_its_caption_and_without(open_work, monkeypatch, joint: float) -> None:
    work = open_work(experts=2, recover={"steps": 2, "batch": 8, "joint": joint, "guidance": 3.0})
    begun, seen, learn = found(work, 2), [], work.distiller.learn

    def spy(student, examples, *given):
        seen.extend(examples)
        with torch.no_grad():
            taught, answer = (
                work.denoiser.predict(model, e.diffused.noisy, e.timesteps, e.text)
                for model in (work.dense, student)
                for e in examples
            )
        told = learn(student, examples, *given)
        if not joint:
            wanted = taught - answer
            wanted = (3 * wanted[:4] - 2 * wanted[4:]).square().mean() / (9 + 4)
            assert float(told["distillation"]) == pytest.approx(float(wanted), rel=1e-3)
        return told

    monkeypatch.setattr(work.distiller, "learn", spy)
    make_experts(work, begun)
    recover(work, begun.architectures, send_all_to(work, 1))
    nothing = work.denoiser.unconditional(work.pipeline, work.sample_size)["encoder_hidden_states"]
    assert len(seen) == 2
    for example in seen:
        noisy, text = example.diffused.noisy, example.text["encoder_hidden_states"]
        assert torch.equal(noisy[:4], noisy[4:])
        assert torch.equal(example.timesteps[:4], example.timesteps[4:])
        assert torch.equal(text[4:], nothing.to(text).expand_as(text[4:]))
        assert not torch.equal(text[:4], text[4:])


def test_what_is_trained_keeps_no_gradients_and_no_others(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an expert begins its own phase, of all that was trained before nothing is left but files."""
    work = open_work(**SPLIT, recover={"steps": 4, "joint": 0.5})
    begun, students, learn = found(work, 2), weakref.WeakSet(), work.distiller.learn

    def spy(student, *given):
        students.add(student)
        gc.collect()
        assert list(students) == [student]
        return learn(student, *given)

    monkeypatch.setattr(work.distiller, "learn", spy)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(2).double())
    assert all(parameter.grad is None for student in students for parameter in student.parameters())


def test_where_all_is_joint_experts_are_slices_of_one_set(open_work) -> None:
    work = open_work(experts=2, recover={"steps": 3, "joint": 1.0})
    begun = found(work, 2)
    make_experts(work, begun)
    assert recover(work, begun.architectures, send_all_to(work, 1)) == 3
    files = [path.relative_to(work.path("experts")).as_posix() for path in work.path("experts").rglob("*.safetensors")]
    assert files == [SHARED]
    together = copy.deepcopy(work.dense)
    together.load_state_dict(load_file(work.path(f"experts/{SHARED}")))
    assert not equal(together.state_dict(), work.dense.state_dict())
    for index, architecture in enumerate(begun.architectures):
        own = slice(together, work.space, architecture)
        assert equal(expert(work, index), own.state_dict())
        save_expert(own, architecture, work.path("apart/experts/00"))  # as it is with weights of its own
        assert equal(load_expert(work.path("apart/experts/00")).state_dict(), own.state_dict())


def test_one_expert_has_no_joint_phase(open_work) -> None:
    work = open_work(experts=1, recover={"steps": 3, "joint": 0.5})
    begun = found(work, 1)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(1).double())
    assert not equal(expert(work), sliced(work, begun.architectures[0]))
    lines = [json.loads(line) for line in work.path("logs/recover.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("own", 0), ("own", 1), ("own", 2)]


def test_joint_training_is_sliced_into_all_experts(open_work) -> None:
    work = open_work(experts=2, recover={"steps": 2, "joint": 1.0})
    begun = found(work, 2)
    make_experts(work, begun)
    recover(work, begun.architectures, send_all_to(work, 0))
    first, second = expert(work, 0), expert(work, 1)
    assert torch.equal(first["conv_in.weight"], second["conv_in.weight"]), "one set of weights"
    assert not torch.equal(first["conv_in.weight"], work.dense.conv_in.weight)
    assert {name: value.shape for name, value in second.items()} == {
        name: value.shape for name, value in sliced(work, begun.architectures[1]).items()
    }


def test_no_steps_leave_the_slices(open_work) -> None:
    work = open_work(experts=1, recover={"steps": 0})
    begun = found(work, 1)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(1).double())
    assert equal(expert(work), sliced(work, begun.architectures[0]))


@pytest.mark.parametrize("restart", [False, True])
def test_one_schedule_lasts_over_both_phases(open_work, monkeypatch: pytest.MonkeyPatch, restart: bool) -> None:
    options = {"steps": 8, "joint": 0.5, "rate": 1.0, "warmup": 0, "restart": restart}
    work = open_work(experts=2, recover=options)
    begun = found(work, 2)
    make_experts(work, begun)
    rates: list[float] = []

    def step(optimizer: torch.optim.Optimizer) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    recover(work, begun.architectures, send_all_to(work, 1))
    falling = [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25] * 2 if restart else falling)


def test_observers_are_told_every_step_once(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    work = open_work(experts=2, recover={"steps": 6, "joint": 0.5})
    begun = found(work, 2)
    make_experts(work, begun)
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(work, "step_ended", lambda stage, step, total, values: told.append((stage, step, total)))
    assert isinstance(work.router, ContrastiveRouter)
    recover(work, begun.architectures, torch.zeros(2).double())
    assert told == [("recover", step, 6) for step in range(6)]


def test_recovery_comes_nearer_to_the_teacher(open_work) -> None:
    work = open_work(experts=1, recover={"steps": 15, "batch": 4, "rate": 0.01})
    begun = found(work, 1)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(1).double())
    lines = [json.loads(line) for line in work.path("logs/recover.jsonl").read_text().splitlines()]
    losses = [line["distillation"] for line in lines]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


SPLIT = {"experts": 2, "router": {"name": "random"}, "balancer": {"name": "none"}}
"""Settings under which both of two experts serve, trained or not."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_jointly_each_picture_trains_its_own_expert(open_work, accumulate: int) -> None:
    """Before its first step, what is trained answers as the slices do that will serve the pictures."""
    work = open_work(**SPLIT, recover={"steps": 1, "batch": 8, "joint": 1.0, "accumulate": accumulate})
    begun, answers, learn = found(work, 2), [], work.distiller.learn
    slices = [slice(work.dense, work.space, architecture) for architecture in begun.architectures]
    route = serve(work.scores(work.train), torch.zeros(2).double())
    route = route[batch_index(len(route), 8, 0, work.config.seed, "recover", "joint")]
    assert route.unique().tolist() == [0, 1]

    def spy(student, examples, *given):
        told = learn(student, examples, *given)
        with torch.no_grad():
            dense, first, second = (
                torch.cat([work.denoiser.predict(m, e.diffused.noisy, e.timesteps, e.text) for e in examples])
                for m in (work.dense, *slices)
            )
        error = torch.where(route.view(-1, 1, 1, 1) == 0, first, second) - dense
        answers.append((float(told["distillation"]), float(error.square().mean())))
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.distiller, "learn", spy)
        make_experts(work, begun)
        recover(work, begun.architectures, torch.zeros(2).double())
    ((told, wanted),) = answers
    assert told == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
@pytest.mark.parametrize("joint", [0.0, 1.0])
def test_captions_are_dropped(open_work, monkeypatch: pytest.MonkeyPatch, joint: float, dropout: float) -> None:
    options = {"steps": 2, "batch": 4, "joint": joint, "caption_dropout": dropout}
    work = open_work(**SPLIT, search={"start": None}, recover=options)
    begun, texts, example = found(work, 2), [], work.noiser.example

    def spy(noised, rows, text):
        texts.append(text["encoder_hidden_states"])
        return example(noised, rows, text)

    monkeypatch.setattr(work.noiser, "example", spy)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(2).double())
    nothing = work.denoiser.unconditional(work.pipeline, work.sample_size)["encoder_hidden_states"]
    assert len(texts) == 2
    for text in texts:
        assert [torch.equal(row, nothing[0].to(row)) for row in text] == [bool(dropout)] * 4


def log_of(work: Workspace) -> list[dict]:
    return [json.loads(line) for line in work.path("logs/recover.jsonl").read_text().splitlines()]


def test_steps_of_every_expert_are_counted(open_work) -> None:
    work = open_work(experts=2, recover={"steps": 4, "joint": 0.5, "per": "expert"})
    begun = found(work, 2)
    make_experts(work, begun)
    assert recover(work, begun.architectures, send_all_to(work, 1)) == 4, "one serves"
    assert [line["expert"] for line in log_of(work)] == [None, None, 1, 1]
    both = open_work("both", **SPLIT, recover={"steps": 4, "joint": 0.5, "per": "expert"})
    make_experts(both, begun)
    assert recover(both, begun.architectures, torch.zeros(2).double()) == 8
    assert [line["expert"] for line in log_of(both)] == [None] * 4 + [0, 0, 1, 1]
    assert {line["total"] for line in log_of(both)} == {8}


class _Killed(Exception):
    pass


@pytest.mark.parametrize(("rank", "kills"), [(0, (1, 2, 4)), (2, (2, 5))])
def test_a_resumed_recovery_is_the_same(
    open_work, monkeypatch: pytest.MonkeyPatch, rank: int, kills: tuple[int, ...]
) -> None:
    """Also between the phases, and where the steps are shared by an error that was measured before."""
    if rank:
        pytest.importorskip("peft")
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("aptp.harness.training.CHECKPOINT_SHARE", math.inf)
    monkeypatch.setattr("aptp.harness.steps.TRIED", 8)
    options = {"steps": 6, "joint": 0.34, "share": "error", "rank": rank, "batch": 4}
    whole, *others = (open_work(out, **SPLIT, recover=options) for out in ("whole", *["cut"] * (len(kills) + 1)))
    begun = found(whole, 2)
    for work in (whole, others[0]):
        make_experts(work, begun)
    recover(whole, begun.architectures, torch.zeros(2).double())

    for stopped, killed_after in zip(others, kills, strict=False):

        def die(stage: str, step: int, total: int, values: dict, last: int = killed_after) -> None:
            if step + 1 == last:
                raise _Killed

        monkeypatch.setattr(stopped, "step_ended", die)
        with pytest.raises(_Killed):
            recover(stopped, begun.architectures, torch.zeros(2).double())
    resumed = others[-1]
    recover(resumed, begun.architectures, torch.zeros(2).double())
    assert {line["expert"] for line in log_of(whole)} == {None, 0, 1}
    assert log_of(resumed) == log_of(whole)
    for index in range(2):
        assert equal(expert(resumed, index), expert(whole, index))


@pytest.mark.parametrize("joint", [0.0, 0.5, 1.0])
def test_low_rank_recovery_leaves_stock_experts(open_work, joint: float) -> None:
    pytest.importorskip("peft")
    work = open_work(**SPLIT, recover={"steps": 4, "joint": joint, "rank": 2, "batch": 4})
    begun = found(work, 2)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(2).double())
    for index, architecture in enumerate(begun.architectures):
        before, after = sliced(work, architecture), expert(work, index)
        assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
        assert torch.equal(before["conv_norm_out.weight"], after["conv_norm_out.weight"]), "no layer of low rank"
        assert not torch.equal(before["conv_out.weight"], after["conv_out.weight"])
    assert [line["step"] for line in log_of(work)] == list(range(4))


def test_low_rank_recovery_comes_nearer_to_the_teacher(open_work) -> None:
    pytest.importorskip("peft")
    work = open_work(experts=1, recover={"steps": 15, "batch": 4, "rate": 0.02, "rank": 4})
    begun = found(work, 1)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(1).double())
    losses = [line["distillation"] for line in log_of(work)]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_a_fresh_start_is_warned_of_and_repeatable(open_work) -> None:
    work, again = (open_work(out, experts=2, recover={"steps": 0, "joint": 0.0, "start": "fresh"}) for out in "ab")
    begun = found(work, 2)
    for run in (work, again):
        make_experts(run, begun)
    recover(work, begun.architectures, torch.zeros(2).double())
    for index, architecture in enumerate(begun.architectures):
        assert equal(expert(work, index), expert(again, index))
        smaller = changed(slice(work.dense, work.space, architecture), work.dense)
        assert not torch.equal(expert(work, index)[smaller[0]], sliced(work, architecture)[smaller[0]])
    (said,) = work.record.warnings
    assert "recover.start=fresh" in said


def calls_of_the_teacher(work: Workspace) -> list[int]:
    calls: list[int] = []
    handle = work.dense.register_forward_hook(lambda model, *_: calls.append(1) if model is work.dense else None)
    begun = found(work, 2)
    make_experts(work, begun)
    recover(work, begun.architectures, torch.zeros(2).double())
    handle.remove()
    return calls


def test_without_distillation_nobody_asks_the_teacher(open_work) -> None:
    alone = {"denoising": 1.0, "distillation": 0.0, "blocks": 0.0}
    nothing = {"start": None}
    work = open_work(experts=2, search=nothing, recover={"steps": 4, "batch": 4, "weights": alone})
    assert not calls_of_the_teacher(work)
    for line in log_of(work):
        assert {"denoising", "distillation", "blocks"} & line.keys() == {"denoising"}
        assert line["loss"] == pytest.approx(line["denoising"], abs=2e-6)
    some = {"steps": 4, "batch": 4, "weights": alone | {"blocks": 0.1}}
    taught = open_work("taught", experts=2, search=nothing, recover=some)
    assert len(calls_of_the_teacher(taught)) == 4
