"""Graphs of experts: the eager expert's output, for batches and texts of sizes that they were not made with."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import aptp
from aptp.api import denoiser_of
from aptp.core.errors import RequestError
from aptp.graphs import NAMES, write_graph
from aptp.testing import MODELS, tiny_space

SIZES = [(1, 9), (3, 4)]
"""Inputs and tokens of text; graphs are made with others."""


def expert_of(name: str) -> nn.Module:
    model = MODELS[name]()
    space = tiny_space(model)
    return aptp.slice(model, space, aptp.Architecture.random(space, 0.5, seed=1)).eval()


def names_a_place(content: bytes) -> bool:
    """Whether it says where the libraries lie on this machine."""
    return str(Path(torch.__file__).parents[1]).encode() in content


def inputs_of(expert: nn.Module, batch: int, tokens: int) -> dict:
    """Random ones."""
    family, draw = denoiser_of(expert), torch.Generator().manual_seed(batch)

    def some(like: torch.Tensor) -> torch.Tensor:
        shape = (batch, *like.shape[1:])
        if like.is_floating_point():
            return torch.randn(shape, generator=draw)
        return torch.randint(1, 900, shape, generator=draw)

    return tree_map(some, family.example_inputs(expert, family.sample_size(expert), tokens))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_torch_export_gives_the_same(name: str, tmp_path: Path) -> None:
    expert = expert_of(name)
    write_graph(expert, tmp_path, "torch")
    with ZipFile(tmp_path / NAMES["torch"]) as file:
        assert not any(names_a_place(file.read(name)) for name in file.namelist())
    graph = torch.export.load(tmp_path / NAMES["torch"]).module()
    for batch, tokens in SIZES:
        inputs = inputs_of(expert, batch, tokens)
        with torch.no_grad():
            (expected,) = expert(**inputs, return_dict=False)
            (answer,) = graph(**inputs, return_dict=False)
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_onnx_gives_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra aptp[onnx] is not installed")
    expert = expert_of("sd2")
    write_graph(expert, tmp_path, "onnx")
    assert not any(names_a_place(path.read_bytes()) for path in tmp_path.iterdir())
    graph = onnxruntime.InferenceSession(tmp_path / NAMES["onnx"], providers=["CPUExecutionProvider"])
    for batch, tokens in SIZES:
        inputs = inputs_of(expert, batch, tokens)
        names = [each.name for each in graph.get_inputs()]
        assert names == list(inputs)
        (answer,) = graph.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            (expected,) = expert(**inputs, return_dict=False)
        torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=1e-3, atol=1e-4)


def test_what_onnx_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aptp.core.extras.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs onnx, onnxscript, not installed; pip install 'aptp\[onnx\]'"):
        write_graph(nn.Identity(), tmp_path, "onnx")
    assert not list(tmp_path.iterdir())
