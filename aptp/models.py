"""Loading the dense pipeline: the embedded one, a local diffusers folder, or a hub name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aptp.core.errors import RequestError, gist
from aptp.core.manifest import check_weight_lists, may_travel

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

EMBEDDED = {"tiny": "tiny"}
"""Names of embedded pipelines and their folders among the package's assets."""
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
"""`owner/name`, or `owner/name@revision` as the hub library's file system writes it; a branch, a tag or a commit."""
VARIANT = "fp16"
"""The half-precision weights that a repository may offer beside or instead of the full ones."""
NO_WEIGHTS = "safetensors"
"""Is in what diffusers says of a repository without such weights, full or of the variant that it was asked for."""
LIBRARIES = ("diffusers", "transformers")
"""Whose classes a pipeline's parts may be, beside those of diffusers' own pipelines (a safety checker, for one)."""
PAPERS = ("README.md", "LICENSE*", "NOTICE*")
"""A model's card and licences, which travel with it."""
MOVED = {
    **{
        f"stabilityai/stable-diffusion-{model}": f"sd2-community/stable-diffusion-{model}"
        for model in ("2", "2-base", "2-1", "2-1-base")
    },
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Hub names that are gone, and where their weights are now."""


def find_model(name: str) -> str:
    """The folder or hub name that `name` means; reads no weights. Raises `RequestError` for what is no pipeline."""
    if name in EMBEDDED:
        return str(files("aptp") / "assets" / EMBEDDED[name])
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise RequestError(f"model folder {name!r} is no diffusers pipeline: it has no model_index.json.")
        return str(folder)
    if HUB_NAME.fullmatch(name):
        return name
    raise RequestError(
        f"unknown model {name!r}; give {', '.join(map(repr, EMBEDDED))}, a local diffusers folder, "
        "or a hub name (owner/name, or owner/name@revision)."
    )


def load_pipeline(name: str, device: torch.device) -> DiffusionPipeline:
    """The dense pipeline in float32, its modules frozen and in eval mode.

    Half-precision weights are taken where there are no others. Weights that would have to be unpickled, and code that
    comes with a model, are not.

    Raises:
        RequestError: if it cannot be had (no such hub name, no network, no access, a damaged folder).
    """
    import torch
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    try:
        with quietly():
            folder = model_folder(name)
            index = DiffusionPipeline.load_config(folder)
            _check_parts(folder, index)
            none = {part: None for part, entry in index.items() if entry == [None, None]}  # as SD 3's third encoder
            pipeline = DiffusionPipeline.from_pretrained(
                folder, variant=_variant(folder), dtype=torch.float32, use_safetensors=True, **none
            )
    except RequestError:
        raise
    except (
        OSError, LookupError, TypeError, ValueError, AttributeError, ImportError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        raise RequestError(f"model {name!r} cannot be loaded: {gist(error)}") from error
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def model_folder(name: str) -> Path:
    """The folder of a model, fetched from the hub if need be. Raises `RequestError` if it cannot be had."""
    source = find_model(name)
    return Path(source) if Path(source).is_dir() else _fetched(name)


def papers_of(name: str) -> list[Path]:
    """The files of a model's card and licences, from the hub if need be; none where it has none or is out of reach."""
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # the hub's client raises errors of several families
        folder = find_model(name)
        if not Path(folder).is_dir() and (hub := HUB_NAME.fullmatch(name)):
            folder = snapshot_download(hub["name"], revision=hub["revision"], allow_patterns=list(PAPERS))
        return sorted(path for pattern in PAPERS for path in Path(folder).glob(pattern))
    return []


def _check_parts(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a pipeline with parts that are not of diffusers or transformers, or not in its folder."""
    import diffusers

    kind = index.get("_class_name")
    family = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(family, type) and issubclass(family, diffusers.DiffusionPipeline)):
        raise ValueError(f"its class {kind!r} is no pipeline of diffusers")
    for part, entry in index.items():
        match entry:
            case [None, None] | bool() | int() | float() | str() | None:
                continue
            case [str(library), str()] if part.isidentifier() and (
                library in LIBRARIES or hasattr(diffusers.pipelines, library)
            ):
                continue
        raise ValueError(f"its part {part!r} is {entry!r}, which is none of diffusers or transformers")
    check_weight_lists(folder)
    _check_tokenizers(folder, index)


def _check_tokenizers(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a tokenizer is a SentencePiece file alone and what reads such is not installed."""
    from transformers import utils

    if utils.is_sentencepiece_available() and utils.is_protobuf_available():
        return
    for part, entry in index.items():
        if not part.startswith("tokenizer") or entry == [None, None] or (folder / part / "tokenizer.json").is_file():
            continue
        if any((folder / part).glob("*.model")):
            raise ValueError(
                f"its {part} is a SentencePiece file alone, and what reads it is not installed; pip install 'aptp[t5]'."
            )


def pipeline_files(folder: Path) -> list[Path]:
    """The files of a diffusers folder that make its pipeline, relative to it; of weights, those that are loaded."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    half = _variant(folder)
    chosen = [folder / "model_index.json"]
    for part in (name for name, entry in index.items() if isinstance(entry, list) and entry != [None, None]):
        files = [path for path in sorted((folder / part).glob("**/[!.]*")) if may_travel(path)]
        weights = [path for path in files if ".safetensors" in path.name]
        halves = [path for path in weights if f".{VARIANT}" in path.name]
        taken = halves if half and halves else [path for path in weights if path not in halves]
        chosen += [path for path in files if path not in weights or path in taken]
    return sorted(path.relative_to(folder) for path in chosen)


def _fetched(name: str) -> Path:
    """The folder of a hub name in the hub library's cache, fetched if it is not there; its own settings apply.

    Raises:
        RequestError: if it is neither there nor can it be fetched.
    """
    from diffusers import DiffusionPipeline

    hub = HUB_NAME.fullmatch(name)
    assert hub
    failure: Exception | None = None
    for variant in (None, VARIANT):
        try:
            return Path(
                DiffusionPipeline.download(hub["name"], revision=hub["revision"], variant=variant, use_safetensors=True)
            )
        except Exception as error:  # the hub's client raises errors of several families
            failure = failure or error
            if NO_WEIGHTS not in str(error):
                break
    raise unavailable("model", name, failure) from failure


def unavailable(what: str, name: str, failure: Exception | None) -> RequestError:
    """The error for a hub name that the hub's client refused: why, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    hub = HUB_NAME.fullmatch(name)
    assert hub
    causes = list(_causes(failure))
    folder = "a local diffusers folder" if what == "model" else "the folder of a run or of a bundle"
    if moved := MOVED.get(hub["name"]):
        why = f"its weights have moved to {moved!r}, which is the name to give"
    elif any(isinstance(cause, GatedRepoError) for cause in causes):
        why = "access to it is restricted: accept its conditions on the hub, and set HF_TOKEN or run `hf auth login`"
    elif constants.HF_HUB_OFFLINE:
        why = f"the hub library is offline (HF_HUB_OFFLINE): go online once, or give {folder}"
    elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        why = f"it has no revision {hub['revision']!r}: give one of its branches, tags or commits"
    elif NO_WEIGHTS in str(failure):
        why = "it has no safetensors weights for every part: give a revision or a copy that has"
    else:
        why = f"check the name, the network and your access (HF_TOKEN), or give {folder}"
    return RequestError(
        f"{what} {name!r} is no folder, is not in the hub's cache on this machine, nor to be had from it; {why}."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _variant(folder: Path) -> str | None:
    """`fp16` where some part of a pipeline has no other weights."""
    for part in folder.iterdir():
        names = [path.name for path in part.glob("*.safetensors")]
        if names and all(re.search(rf"\.{VARIANT}[.-]", name) for name in names):  # `-` before the number of a shard
            return VARIANT
    return None


def keep_in_float32(pipeline: DiffusionPipeline) -> None:
    """Have in float32 what a text encoder in float16 names as too large for it, and loads so: T5's feed-forwards."""
    import torch
    from transformers import PreTrainedModel

    for part in pipeline.components.values():
        if isinstance(part, PreTrainedModel) and part.dtype == torch.float16:
            for path, module in part.named_modules():
                if set(part._keep_in_fp32_modules or ()).intersection(path.split(".")):
                    module.float()


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


def settings(part: object) -> list[Any]:
    """The kind of a pipeline, or of a part of one, and how it is configured; of a tokenizer, what it knows."""
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    if isinstance(part, PreTrainedTokenizerBase):
        rules = getattr(part, "backend_tokenizer", None)
        known = json.loads(rules.to_str()) if rules else part.get_vocab()
        last_call = {"padding": None, "truncation": None}
        special = {name: str(token) for name, token in part.special_tokens_map.items()}
        return [type(part).__name__, part.model_max_length, part.padding_side, special, known | last_call]
    config = getattr(part, "config", {})
    if isinstance(config, PreTrainedConfig):
        config = config.to_dict() | {"transformers_version": None}
    return [type(part).__name__, {name: str(value) for name, value in config.items() if not name.startswith("_")}]


@contextmanager
def quietly() -> Iterator[None]:
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
