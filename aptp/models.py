"""Loading the dense pipeline: the embedded one, a local diffusers folder, or a hub name."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aptp.core.errors import RequestError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

EMBEDDED = {"tiny": "tiny"}
"""Names of embedded pipelines and their folders among the package's assets."""


def find_model(name: str) -> str:
    """The folder or hub name that `name` means; reads no weights. Raises `RequestError` for what is no pipeline."""
    if name in EMBEDDED:
        return str(files("aptp") / "assets" / EMBEDDED[name])
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise RequestError(f"model folder {name!r} is no diffusers pipeline: it has no model_index.json.")
        return name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise RequestError(
        f"unknown model {name!r}; give {', '.join(map(repr, EMBEDDED))}, a local diffusers folder, "
        "or a hub name (owner/name)."
    )


def load_pipeline(name: str, device: torch.device) -> DiffusionPipeline:
    """The dense pipeline in float32, its modules frozen and in eval mode.

    Raises:
        RequestError: if it cannot be had (no such hub name, no network, a damaged folder).
    """
    from diffusers import DiffusionPipeline

    source = find_model(name)
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"model {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def device_of(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises `RequestError` for a device that is not there."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from error
    return device
