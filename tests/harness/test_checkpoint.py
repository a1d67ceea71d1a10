"""Logs and checkpoints, whole and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from aptp.core.errors import RequestError
from aptp.harness.checkpoint import Checkpoint, Log, before, steps_done


def test_log_keeps_what_was_done_and_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path / "logs/x.jsonl")
    for step in range(5):
        log.write(step=step, total=5, loss=step / 3)
    resumed = Log(tmp_path / "logs/x.jsonl", start=3)
    assert resumed.kept == [{"loss": 0.0}, {"loss": 0.333333}, {"loss": 0.666667}]
    resumed.write(step=3, total=5, loss=9.0)
    assert [line["loss"] for line in Log(tmp_path / "logs/x.jsonl", start=9).kept] == [0.0, 0.333333, 0.666667, 9.0]


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.ModuleDict({"a": nn.Linear(3, 2), "later": nn.Linear(3, 2)})
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module["a"](torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def test_checkpoint_gives_back_module_and_optimizer(tmp_path: Path) -> None:
    """Also with parameters that have had no gradient, like a router's codes during its warm-up."""
    module, optimizer = trained(0, 4)
    Checkpoint(tmp_path / "c.safetensors", module, optimizer).save(4)
    other, fresh = trained(1, 0)
    assert Checkpoint(tmp_path / "c.safetensors", other, fresh).restore(pytest.fail) == 4
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    before, after = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys() == {0, 1}
    assert all(torch.equal(before[i][key], after[i][key]) for i in before for key in before[i])


def test_no_checkpoint_is_step_zero(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "none.safetensors", *trained(0, 0)).restore(pytest.fail) == 0


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    for step in range(1, 5):
        Checkpoint(path, *trained(0, step)).save(step)
    assert {file.name for file in tmp_path.iterdir()} == {"search.safetensors", "search.before.safetensors"}
    assert Checkpoint(before(path), *trained(1, 0)).restore(pytest.fail) == 3
    assert Checkpoint(path, *trained(1, 0)).restore(pytest.fail) == 4


def test_a_checkpoint_says_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    assert steps_done(path) == 0
    Checkpoint(path, *trained(0, 1)).save(3)
    assert steps_done(path) == 3
    path.write_bytes(cut(path.read_bytes()))
    assert steps_done(path) == 0


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit of the last value is another."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flipped, lambda content: b"", lambda content: bytes(len(content))])
def test_the_one_before_a_damaged_checkpoint_is_taken(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "search.safetensors"
    (module, optimizer), warnings = trained(0, 3), []
    Checkpoint(path, module, optimizer).save(3)
    Checkpoint(path, *trained(0, 4)).save(4)
    path.write_bytes(damage(path.read_bytes()))
    other, fresh = trained(1, 0)
    assert Checkpoint(path, other, fresh).restore(warnings.append) == 3
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
    (line,) = warnings
    assert f"checkpoint {str(path)!r} is damaged" in line
    assert "\n" not in line
    assert Checkpoint(path, *trained(1, 0)).restore(pytest.fail) == 3, "the damaged one is gone"


def test_killed_between_two_renamings(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    Checkpoint(path, *trained(0, 3)).save(3)
    path.rename(before(path))
    assert Checkpoint(path, *trained(1, 0)).restore(pytest.fail) == 3


def test_two_damaged_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    for step in (3, 4):
        Checkpoint(path, *trained(0, step)).save(step)
    for file in (path, before(path)):
        file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(RequestError, match=r"search\.safetensors' is damaged .*; delete it"):
        Checkpoint(path, *trained(0, 0)).restore(lambda text: None)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_sentence(tmp_path: Path, share: float) -> None:
    path = tmp_path / "search.safetensors"
    Checkpoint(path, *trained(0, 2)).save(2)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RequestError, match=r"checkpoint '.*search\.safetensors' is damaged") as caught:
        Checkpoint(path, *trained(0, 0)).restore(pytest.fail)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "search.safetensors"
    Checkpoint(path, *trained(0, 2)).save(2)
    other = nn.Linear(5, 5)
    with pytest.raises(RequestError, match=r"search\.safetensors' is damaged") as caught:
        Checkpoint(path, other, torch.optim.AdamW(other.parameters())).restore(pytest.fail)
    assert "\n" not in str(caught.value)
