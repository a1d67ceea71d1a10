"""Recovery: who gets how many steps, and from what experts start."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.slicing import load_expert, slice
from aptp.harness.recover import _shared_out, make_experts, recover
from aptp.harness.search import Found
from aptp.harness.workspace import Workspace
from aptp.plugins.routers.contrastive import ContrastiveRouter


@given(steps=st.integers(0, 500), weights=st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any))
def test_steps_are_shared_out_by_load(steps: int, weights: list[int]) -> None:
    load = torch.tensor(weights).double() / sum(weights)
    shares = _shared_out(steps, load)
    assert sum(shares) == steps
    assert all(abs(share - steps * part) < 1 for share, part in zip(shares, load.tolist(), strict=True))
    assert all(share == 0 for share, part in zip(shares, weights, strict=True) if not part)


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
