"""Every registered balancer assigns the global batch: two processes with half of it each answer as one with all."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from aptp.core.balancer import Assignment
from aptp.host import Host

HOST = Host(entry_points=False)
BALANCERS = list(HOST.specs("balancer"))
SCORES = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCORES[:12, 1] += 3  # halves that would be balanced otherwise if each were on its own
WEIGHTS = torch.linspace(0.5, 1.5, 24, dtype=torch.float64)


def assign(name: str, scores: Tensor, weights: Tensor) -> Assignment:
    return HOST.create("balancer", name).assign(scores, prompt_weights=weights)


def process(rank: int, store: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    halves = SCORES.chunk(2)[rank], WEIGHTS.chunk(2)[rank]
    torch.save({name: vars(assign(name, *halves)) for name in BALANCERS}, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes answers, by balancer."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=process, args=(rank, folder / "store", folder), daemon=True) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", BALANCERS)
def test_two_processes_answer_as_one(name: str, halves: list[dict]) -> None:
    whole, answers = assign(name, SCORES, WEIGHTS), [half[name] for half in halves]
    assert torch.equal(torch.cat([answer["index"] for answer in answers]), whole.index)
    for answer in answers:
        torch.testing.assert_close(answer["penalty"], whole.penalty, atol=1e-12, rtol=1e-9)
    if whole.plan is not None:
        torch.testing.assert_close(torch.cat([a["plan"] for a in answers]), whole.plan, atol=1e-9, rtol=0)
