"""Loading the dense pipeline: the embedded one, a local diffusers folder, or a hub name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from aptp.core.errors import RequestError, gist

if TYPE_CHECKING:
    import torch
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
    import torch
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    source = find_model(name)
    try:
        with _quietly():
            index = DiffusionPipeline.load_config(source)
            none = {name: None for name, entry in index.items() if entry == [None, None]}  # as SD 3's third encoder
            pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **none)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        if not Path(source).is_dir():
            raise RequestError(
                f"model {name!r} is neither in the hub's cache on this machine nor can it be fetched from the hub; "
                "check the name, the network and your access, or give a local diffusers folder."
            ) from error
        raise RequestError(f"model {name!r} cannot be loaded: {gist(error)}") from error
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipeline, part, None) is None:
            raise RequestError(f"model {name!r} has no {part}; a whole text-to-image pipeline is right.")
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def fingerprint(*modules: torch.nn.Module) -> str:
    """A hash of the modules' weights: their names, shapes, and up to 4,096 values of each, evenly spread."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            values = tensor.detach().flatten()
            values = values[:: max(1, values.numel() // 4096)].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]


def pipeline_fingerprint(pipeline: DiffusionPipeline) -> str:
    """The fingerprint of all modules of a pipeline."""
    import torch

    modules = (component for _, component in sorted(pipeline.components.items()))
    return fingerprint(*(module for module in modules if isinstance(module, torch.nn.Module)))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' own progress bars and remarks; their settings are put back."""
    import diffusers
    import transformers

    logs = [library.utils.logging for library in (diffusers, transformers)]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            (log.enable_progress_bar if bars else log.disable_progress_bar)()


def device_of(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises `RequestError` for a device that is not there."""
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"device {name!r} is not available: {gist(error)}") from error
    return device
