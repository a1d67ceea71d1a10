"""Bundles: writing one from a run, fetching one from the hub, putting one there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aptp.api import denoiser_of
from aptp.bundle import CALIBRATION, ENCODER, MODEL, Bundle, expert_folder, found_from
from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.files import check_new, settle, write_json, write_text
from aptp.core.manifest import MANIFEST, SUFFIXES, Manifest, may_travel
from aptp.core.record import Record
from aptp.core.slicing import SHARED, save_expert
from aptp.host import default_host
from aptp.models import HUB_NAME, PAPERS, model_folder, papers_of, pipeline_files, unavailable
from aptp.report.card import Contents, card, expert_card

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

NO_PART = (None, [None, None])
"""What a pipeline's index says of a part that it has not."""


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


def write_expert(bundle: Bundle, index: int, folder: Path, form: str = "diffusers") -> None:
    """Write one expert into a new folder, with a note on how it is loaded.

    Args:
        form: `diffusers`, which `aptp.load_expert` reads, or a graph: `onnx` or `torch` (see `aptp.graphs`).

    Raises:
        RequestError: if there is no such expert, or the folder has something in it.
    """
    expert = bundle.expert(index)
    with _new_folder(folder) as made:
        if form == "diffusers":
            save_expert(expert, Architecture.load(bundle.folder / expert_folder(index) / "architecture.json"), made)
        else:
            from aptp.graphs import write_graph

            write_graph(expert, made, form)
        base, cost = _public(bundle.model), bundle.fractions[index]
        size = denoiser_of(expert).sample_size(expert)
        card = expert_card(expert, index, form, size=size, base=base, component=bundle.component, cost=cost)
        write_text(made / "README.md", card)


def find_bundle(name: str) -> Path:
    """The folder of a bundle or a run: `name` itself, or the hub's `owner/name`, or `owner/name@revision`.

    Raises:
        RequestError: if it is neither there nor to be had from the hub, or has no manifest there: a run is trusted as
            nothing from elsewhere is.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if not (hub := HUB_NAME.fullmatch(name)):
        raise RequestError(f"bundle {name!r} is neither a folder nor a hub name (owner/name, or owner/name@revision).")
    from huggingface_hub import snapshot_download

    papers = [*PAPERS, *(f"*/{paper}" for paper in PAPERS)]
    kinds = [*papers, *(f"*{suffix}" for suffix in filter(None, SUFFIXES))]
    try:
        folder = Path(snapshot_download(hub["name"], revision=hub["revision"], allow_patterns=kinds))
    except Exception as error:  # the hub's client raises errors of several families
        raise unavailable("bundle", name, error) from error
    if not (folder / MANIFEST).is_file():
        raise RequestError(
            f"{name!r} is no bundle: it has no {MANIFEST}; write one with aptp export, or download the run."
        )
    return folder


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
    files = {path for home in (run / "router", *experts) for path in home.iterdir() if may_travel(path)}
    _copy(run, made, (path.relative_to(run) for path in sorted(files.union(bundle.weights))))
    model = model_folder(bundle.base)
    _copy(model, made / MODEL, pipeline_files(model))
    papers = papers_of(bundle.model)
    for paper in papers:
        shutil.copyfile(paper, made / MODEL / paper.name)
    router = json.loads((made / "router/router.json").read_text(encoding="utf-8"))
    home = router.pop("home", None)
    router["model"] = _public(bundle.model)
    encoder = router["encoder"].get("model") and found_from(home, router["encoder"]["model"])
    if encoder and (folder := Path(encoder).expanduser()).is_dir():
        found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if may_travel(path))
        _copy(folder, made / ENCODER, (file for file in found if not any(part.startswith(".") for part in file.parts)))
        router["encoder"]["model"] = _public(encoder)
    write_json(made / "router/router.json", router)
    write_text(made / "README.md", card(_contents(bundle, made, router, papers), _record(run)))


def _record(run: Path) -> Record | None:
    return Record.load(run / "record.json") if (run / "record.json").is_file() else None


def _contents(bundle: Bundle, made: Path, router: dict[str, Any], papers: list[Path]) -> Contents:
    hub = HUB_NAME.fullmatch(router["model"])
    encoder = router["encoder"]
    read_by = encoder.get("model") or default_host().spec("encoder", encoder["name"]).summary
    if commit := encoder.get("revision"):
        read_by = f"{read_by}@{commit}"
    return Contents(
        base=hub["name"] if hub else router["model"],
        on_hub=hub is not None,
        terms=_terms(made / MODEL),
        papers=[paper.name for paper in papers],
        component=bundle.component,
        encoder=f"{encoder['name']} ({read_by})",
        checked=json.loads((made / MODEL / "model_index.json").read_text()).get("safety_checker") not in NO_PART,
        fractions=bundle.fractions,
        sizes=[path.stat().st_size for path in bundle.weights],
        shared=bundle.weights[0].name == SHARED,
        calibrated=_calibrated(bundle),
    )


def _calibrated(bundle: Bundle) -> str | None:
    if bundle.budget is None or not (bundle.folder / CALIBRATION).is_file():
        return None
    return f"{bundle.budget.target:g} of the dense {bundle.budget.name}"


def _terms(model: Path) -> dict[str, Any]:
    """What a model's card says of its licence; a licence that lies beside the card is linked to where it is now."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        said = ModelCard.load(model / "README.md", ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one without metadata
        return {}
    terms = {name: said[name] for name in ("license", "license_name", "license_link") if name in said}
    if (model / str(terms.get("license_link", "."))).is_file():
        terms["license_link"] = f"{MODEL}/{terms['license_link']}"
    return terms


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
    check_new(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    try:
        yield made
        made.chmod(0o755)
        settle(made)
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
