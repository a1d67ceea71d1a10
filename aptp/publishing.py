"""Bundles: writing one from a run, fetching one from the hub, putting one there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aptp.bundle import CALIBRATION, ENCODER, MODEL, Bundle, expert_folder
from aptp.core.errors import RequestError
from aptp.core.files import write_json
from aptp.core.manifest import SUFFIXES, Manifest, is_shared
from aptp.core.slicing import SHARED
from aptp.models import HUB_NAME, PAPERS, model_folder, pipeline_files, unavailable

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy what serving needs into a new folder, with a manifest. Files are copied, not made anew: the same bits.

    It is made beside its place and renamed onto it, so no half of it is ever there.

    Raises:
        RequestError: if the folder has something in it, or what is to be copied is damaged.
    """
    with _new_folder(folder) as made:
        if bundle.manifest:
            bundle.manifest.verify(*bundle.manifest.files)
            _copy(bundle.folder, made, map(Path, bundle.manifest.files))
        else:
            _assemble(bundle, made)
        if (calibration := bundle.folder / CALIBRATION).is_file():
            shutil.copyfile(calibration, made / "router" / CALIBRATION)
        Manifest.of(made).save()
        Manifest.load(made)


def find_bundle(name: str) -> Path:
    """The folder of a bundle or a run: `name` itself, or the hub's `owner/name`, or `owner/name@revision`.

    Raises:
        RequestError: if it is neither there nor to be had from the hub.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if not (hub := HUB_NAME.fullmatch(name)):
        raise RequestError(f"bundle {name!r} is neither a folder nor a hub name (owner/name, or owner/name@revision).")
    from huggingface_hub import snapshot_download

    kinds = [*PAPERS, *(f"*{suffix}" for suffix in filter(None, SUFFIXES))]
    try:
        return Path(snapshot_download(hub["name"], revision=hub["revision"], allow_patterns=kinds))
    except Exception as error:  # the hub's client raises errors of several families
        raise unavailable("bundle", name, error) from error


def push_bundle(
    bundle: Bundle,
    repo_id: str,
    *,
    commit_message: str | None,
    private: bool | None,
    token: str | None,
    create_pr: bool,
) -> CommitInfo:
    """Put a bundle on the hub in one commit that replaces what the repository had."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "bundle"
        write_bundle(bundle, folder)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message or "Upload a bundle of aptp",
            create_pr=create_pr,
            delete_patterns="*",
        )


def _assemble(bundle: Bundle, made: Path) -> None:
    """The parts of a bundle from a run and its base model."""
    run = bundle.folder
    experts = [run / expert_folder(index) for index in range(len(bundle.fractions))]
    files = [path for home in (run / "router", *experts) for path in home.iterdir() if is_shared(path)]
    if (shared := run / "experts" / SHARED).is_file():
        files.append(shared)
    _copy(run, made, (path.relative_to(run) for path in files))
    model = model_folder(bundle.base)
    _copy(model, made / MODEL, pipeline_files(model))
    router = json.loads((made / "router/router.json").read_text(encoding="utf-8"))
    router["model"] = _public(router["model"])
    encoder = router["encoder"].get("model")
    if encoder and (folder := Path(encoder).expanduser()).is_dir():
        _copy(folder, made / ENCODER, (path.relative_to(folder) for path in folder.glob("**/[!.]*") if is_shared(path)))
        router["encoder"]["model"] = _public(encoder)
    write_json(made / "router/router.json", router)


def _public(name: str) -> str:
    """A name without the folders of this machine."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def _copy(source: Path, target: Path, files: Iterator[Path] | list[Path]) -> None:
    for path in files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, renamed onto it if the body succeeds and removed if it does not."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{str(folder)!r} is there already and not an empty folder; name a new one.")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    try:
        yield made
        made.chmod(0o755)
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
