"""Pretrained models from a local folder or the hub, for encoders and metrics: found, loaded, told apart by content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aptp.core.errors import RequestError
from aptp.core.manifest import check_weight_lists, may_travel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is fetched and read of a model: configurations, vocabularies, weights; nothing that needs unpickling."""

SNAPSHOTS = "snapshots"
"""Where the hub library's cache has a folder for each commit."""
WHOLE = 200 * 2**20
SLICES, SLICE = 64, 2**20


def find_folder(what: str, name: str, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself, or the hub's files in the local cache, fetched if they are not there.

    Raises:
        RequestError: if `name` is neither a folder nor to be had from the hub.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name):
        raise RequestError(f"{what} {name!r} does not exist; give a local folder or a hub name (owner/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises errors of several families
        raise RequestError(
            f"{what} {name!r}{f' (revision {revision!r})' if revision else ''} is neither a local folder nor to be had "
            f"from the hub ({type(error).__name__}); "
            "give an existing folder, or a hub name (owner/name) while online or after it was downloaded."
        ) from error


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub library's cache holds; None for any other folder."""
    return folder.name if folder.parent.name == SNAPSHOTS else None


@contextmanager
def loading(what: str, name: str, right: str) -> Iterator[None]:
    """Load a model in silence; whatever its library raises becomes a `RequestError` that says what would be `right`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # a damaged folder may break the library anywhere
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise RequestError(f"{what} {name!r} cannot be loaded ({reason}); give {right}.") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises `ValueError` if it holds none: transformers would make an empty one."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError("it has no tokenizer.json")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_complete(kind: Any, folder: Path, **settings: object) -> Any:
    """The transformers model of class `kind` in a folder, in float32, frozen, in eval mode.

    Raises:
        ValueError: if the folder lacks some of its weights, which transformers would draw at random, or lists ones that
            lie elsewhere or are no safetensors.
    """
    check_weight_lists(folder)
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True, **settings
    )
    if found["missing_keys"]:
        raise ValueError(f"it has no weights for {min(found['missing_keys'])}")
    return model.eval().requires_grad_(False)


def digest(folder: Path, *settings: object) -> str:
    """A hash of a model's files and of settings, the same wherever the folder lies.

    Names, sizes and content of those that may travel in a bundle and are not hidden; of files above 200 MB, 64 evenly
    spaced slices of 1 MB, the first of which holds the header of a safetensors file.
    """
    sha = hashlib.sha256(repr(settings).encode())
    for path in sorted(path for pattern in FILES for path in folder.rglob(pattern) if may_travel(path)):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        sha.update(f"\n{name.as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                sha.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for i in range(SLICES):
                file.seek(i * (size - SLICE) // (SLICES - 1))
                sha.update(file.read(SLICE))
    return sha.hexdigest()
