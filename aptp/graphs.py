"""Experts as graphs that run without aptp and diffusers: of `torch.export`, or of ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from aptp.api import denoiser_of
from aptp.core.extras import check_extra
from aptp.host import Host

NAMES = {"torch": "expert.pt2", "onnx": "expert.onnx"}
"""The file of each kind of graph; a large one of ONNX keeps its weights beside it."""
TOKENS = 7
"""Length of the text that the graph is made with; any serves."""


def graph_of(expert: nn.Module, host: Host | None = None) -> ExportedProgram:
    """The graph of a denoiser at its own size of latents, for any number of inputs and any length of text.

    It takes the keyword arguments of the module's own `forward` and answers with a tuple of its output.
    """
    family = denoiser_of(expert, host)
    inputs, longer = (
        tree_map(lambda value: value.repeat(2, *[1] * (value.ndim - 1)), family.example_inputs(expert, size, tokens))
        for size in [family.sample_size(expert)]
        for tokens in (TOKENS, TOKENS + 1)
    )
    shapes = tree_map(_free, inputs, longer)
    with torch.no_grad():
        program = torch.export.export(
            expert, (), {**inputs, "return_dict": False}, dynamic_shapes={**shapes, "return_dict": None}
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # half of the file, and full of places on this machine
    return program


def write_graph(expert: nn.Module, folder: Path, kind: str) -> None:
    """Write an expert's graph into a folder.

    Args:
        kind: `torch`, for `torch.export.load`, or `onnx`.

    Raises:
        RequestError: for `onnx` if the packages that write it are not installed.
    """
    if kind == "torch":
        torch.export.save(graph_of(expert), folder / NAMES[kind])
        return
    check_extra("format onnx", "onnx")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it remarks on libraries that are not needed
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch about itself
        torch.onnx.export(graph_of(expert), f=folder / NAMES[kind], dynamo=True, verbose=False)


def _free(value: Tensor, longer: Tensor) -> dict[int, Any]:
    """The dimensions that may be of any size: the first, and those that grow with the text."""
    sizes = enumerate(zip(value.shape, longer.shape, strict=True))
    return {dim: Dim.DYNAMIC for dim, (one, other) in sizes if dim == 0 or one != other}
