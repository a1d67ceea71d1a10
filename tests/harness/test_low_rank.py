"""Low-rank training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aptp.config import RunConfig
from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.gates import gated
from aptp.core.slicing import slice
from aptp.harness.exam import answers
from aptp.harness.low_rank import low_rank
from aptp.harness.workspace import Workspace
from aptp.host import default_host

pytest.importorskip("peft")
RANK = 2


def trained(module: nn.Module, *key: object) -> nn.Module:
    """The module with every low-rank change moved from 0."""
    with low_rank(module, RANK, *key):
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


def test_changes_have_the_rank_and_only_they_are_trained(base: Workspace) -> None:
    module = copy.deepcopy(base.dense)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with low_rank(module, RANK, 0):
        learned = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        layers = [m for m in base.dense.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(learned) == 2 * len(layers)
        assert all("lora_" in name for name in learned)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    after = module.state_dict()
    assert after.keys() == before.keys(), "the stock model's own layers again"
    assert type(module) is type(base.dense)
    for name, value in before.items():
        change = (after[name] - value).flatten(1) if value.ndim > 1 else after[name] - value
        if value.ndim > 1 and name.rpartition(".")[0] in dict(base.dense.named_modules()):
            limit = RANK * (value.shape[2] * value.shape[3] if value.ndim == 4 else 1)
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= limit, name
        else:
            assert not change.any(), name


def test_nothing_learned_changes_nothing(base: Workspace) -> None:
    module = copy.deepcopy(base.dense)
    with low_rank(module, RANK, 0):
        pass
    for name, value in base.dense.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_merging_changes_no_answer(base: Workspace) -> None:
    module = copy.deepcopy(base.dense)
    with low_rank(module, RANK, 0):
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        inside = answers(base, module, base.exam.example)
    assert not torch.allclose(inside, base.exam.answer, atol=1e-3)
    torch.testing.assert_close(answers(base, module, base.exam.example), inside, atol=1e-4, rtol=1e-3)


def test_under_gates_it_is_the_slice_of_what_is_merged(base: Workspace) -> None:
    """So joint training sees what its experts will be."""
    architecture = Architecture.random(base.space, keep=0.5, seed=0)
    module = copy.deepcopy(base.dense)
    with low_rank(module, RANK, 0):
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        with gated(module, base.space, architecture.gates):
            masked = answers(base, module, base.exam.example)
    sliced = slice(module, base.space, architecture)
    torch.testing.assert_close(answers(base, sliced, base.exam.example), masked, atol=1e-4, rtol=1e-3)


def test_the_start_is_drawn_by_its_key_alone(base: Workspace) -> None:
    first, same, other = (trained(copy.deepcopy(base.dense), key) for key in (1, 1, 2))
    assert torch.equal(first.conv_in.weight, same.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)


def test_a_missing_package_is_one_sentence(small_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aptp.config.find_spec", lambda name: None)
    config = RunConfig.model_validate(small_config.model_dump() | {"recover": {"rank": 4}})
    with pytest.raises(RequestError, match=r"recover\.rank 4 needs the package peft.*aptp\[peft\]") as caught:
        config.resolved(default_host())
    assert "\n" not in str(caught.value)
