"""Two processes: the global batch, its gradient, and each one's own rows."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from aptp.core.distributed import gather, own

ROWS = torch.arange(12.0).view(2, 2, 3) / 7  # [process, row, column]


def loss(rows: torch.Tensor) -> torch.Tensor:
    """Something of the whole batch, in which every row meets every other."""
    return torch.softmax(rows @ rows.T, dim=-1).square().sum()


def process(rank: int, store: str, answers: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rows = ROWS[rank].clone().requires_grad_()
    everyone = gather(rows)
    (slope,) = torch.autograd.grad(loss(everyone), rows)
    torch.save({"everyone": everyone.detach(), "own": own(everyone).detach(), "slope": slope}, f"{answers}/{rank}")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(process, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    everyone = ROWS.flatten(0, 1).requires_grad_()
    (expected,) = torch.autograd.grad(loss(everyone), everyone)
    for rank in range(2):
        answer = torch.load(tmp_path / str(rank), weights_only=True)
        assert torch.equal(answer["everyone"], everyone)
        assert torch.equal(answer["own"], ROWS[rank])
        # Both processes hold the whole loss, so the gradients add up; averaging over processes gives back the one.
        torch.testing.assert_close(answer["slope"], 2 * expected.view(2, 2, 3)[rank])


def test_one_process():
    rows = torch.randn(4, 3, requires_grad=True)
    assert gather(rows) is rows
    assert own(rows) is rows
