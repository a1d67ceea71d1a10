"""Experts are read when they are asked for, and make room for one another."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from aptp.experts import Experts, size_of
from aptp.routing import DENSE

KILO = 1000


class Denoiser(nn.Linear):
    """A thousand bytes of weights that know where they are, as diffusers models do."""

    def __init__(self) -> None:
        super().__init__(250, 1, bias=False)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


@pytest.fixture
def reads() -> list[int]:
    """The numbers of the experts that were read, in order."""
    return []


@pytest.fixture
def open_experts(reads: list[int]):
    def read(index: int, dtype: torch.dtype) -> nn.Module:
        reads.append(index)
        return Denoiser().to(dtype)

    return lambda dense, limit=None: Experts(dense, read, limit)


def test_an_expert_is_read_once(open_experts, reads: list[int]) -> None:
    experts = open_experts(dense := Denoiser())
    assert reads == []
    assert not experts.is_ready(1)
    assert experts[1] is experts[1] is not experts[0]
    assert experts[DENSE] is dense
    assert reads == [1, 0]
    assert experts.is_ready(1)


def test_threads_read_an_expert_once() -> None:
    reads: list[int] = []

    def read(index: int, dtype: torch.dtype) -> nn.Module:
        reads.append(index)
        time.sleep(0.05)
        return Denoiser()

    experts = Experts(Denoiser(), read)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(experts.__getitem__, [0] * 4))
    assert reads == [0]
    assert all(expert is found[0] for expert in found)


def test_who_was_not_asked_for_longest_makes_room(open_experts, reads: list[int]) -> None:
    experts = open_experts(Denoiser(), 3 * KILO)
    for index in (0, 1, 0, 2):
        experts[index]
    assert [index for index in range(3) if experts.is_ready(index)] == [0, 2]
    assert experts.is_ready(DENSE), "on the CPU the dense model stays"
    experts[1]
    assert reads == [0, 1, 2, 1]


def test_whoever_is_asked_for_gets_in(open_experts) -> None:
    experts = open_experts(Denoiser(), 0)
    for index in (0, 1):
        assert size_of(experts[index]) == KILO
    assert not experts.is_ready(0)
    assert experts.is_ready(1)


def test_who_is_held_makes_no_room(open_experts, reads: list[int]) -> None:
    experts = open_experts(Denoiser(), 3 * KILO)
    with experts.held(0) as first, experts.held(0):
        for index in (1, 2):
            experts[index]
        assert experts[0] is first
        assert [index for index in range(3) if experts.is_ready(index)] == [0, 2]
    experts[1]
    assert [index for index in range(3) if experts.is_ready(index)] == [0, 1]
    assert reads == [0, 1, 2, 1]


def test_who_draws_stays_while_other_threads_ask_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a model that was moved away fails where it is used."""
    place: dict[int, str] = {}

    class Elsewhere(Denoiser):
        device = property(lambda self: torch.device(place.setdefault(id(self), "cpu")))

        def draw(self) -> bool:
            time.sleep(0.002)
            return place[id(self)] == "cuda:0"

    def move(module: nn.Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        place[id(module)] = str(device)
        return module

    monkeypatch.setattr(nn.Module, "to", move)
    dense = Elsewhere()
    place[id(dense)] = "cuda:0"
    experts = Experts(dense, lambda index, dtype: Elsewhere(), 2 * KILO)

    def draw(turn: int) -> bool:
        if turn % 2:
            return bool(experts[turn % 5 - 1])
        with experts.held(turn % 5 - 1) as model:
            return all(model.draw() for _ in range(5))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(draw, range(60)))
    experts[0]
    assert sum(experts.is_ready(index) for index in range(DENSE, 4)) <= 2


def test_elsewhere_they_wait_in_main_memory(open_experts, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that can be had everywhere: moving there is written down, and nothing moves."""
    place: dict[int, str] = {}

    class Elsewhere(Denoiser):
        device = property(lambda self: torch.device(place.setdefault(id(self), "cpu")))

    def move(module: nn.Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        if device is not None:
            place[id(module)] = str(device)
        return module

    monkeypatch.setattr(nn.Module, "to", move)
    dense = Elsewhere()
    place[id(dense)] = "cuda:0"

    def read(index: int, dtype: torch.dtype) -> nn.Module:
        reads.append(index)
        return Elsewhere()

    experts = Experts(dense, read, 2 * KILO)
    first, second = experts[0], experts[1]
    where = [place[id(model)] for model in (dense, first, second)]
    assert where == ["cpu", "cuda:0", "cuda:0"]
    assert experts[DENSE] is dense
    assert [place[id(model)] for model in (dense, first, second)] == ["cuda:0", "cpu", "cuda:0"]
    assert experts[0] is first
    assert reads == [0, 1], "nobody is read twice"


def test_experts_follow_type_and_device(open_experts) -> None:
    experts = open_experts(Denoiser())
    early = experts[0]
    experts.to(torch.device("cpu"), torch.bfloat16)
    assert experts[0] is early
    assert {experts[index].dtype for index in (0, 1)} == {torch.bfloat16}


def test_an_expert_that_does_not_fit_is_off_the_device_again(open_experts, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, moves, move = open_experts(Denoiser()), [], nn.Module.to

    def to(model: nn.Module, device: object) -> nn.Module:
        if isinstance(device, torch.dtype):
            return move(model, device)
        moves.append(str(device))
        if len(moves) == 1:
            raise torch.OutOfMemoryError("half of it came through")
        return move(model, device)

    experts.device = torch.device("meta")
    monkeypatch.setattr(nn.Module, "to", to)
    with pytest.raises(torch.OutOfMemoryError, match="half of it"):
        experts[0]
    assert moves == ["meta", "cpu"]
    assert not experts.is_ready(0)
    assert experts[0].device.type == "meta", "it is tried again"
