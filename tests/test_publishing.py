"""Bundles: what is written serves the same, wherever it lies; what was changed or would lead out is refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import aptp
from aptp.bundle import load_bundle, load_finished
from aptp.cli import app
from aptp.core.errors import RequestError
from aptp.core.manifest import MANIFEST, Manifest
from aptp.core.slicing import SHARED, share_weights
from aptp.host import default_host
from aptp.models import load_pipeline, pipeline_fingerprint
from aptp.pipeline import RoutedPipeline
from aptp.plugins.encoders.minilm import package_folder
from aptp.publishing import _terms, find_bundle
from aptp.report.tables import methods_table
from aptp.report.wording import percent

PROMPTS = ["a red star", "the word STOP", "two blue dots"]


@pytest.fixture(scope="module")
def pipe(finished) -> RoutedPipeline:
    return aptp.load(finished.out, device="cpu")


@pytest.fixture(scope="module")
def bundle(pipe: RoutedPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; read it, change nothing in it."""
    folder = tmp_path_factory.mktemp("bundles") / "one"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn(pipe: RoutedPipeline, **settings: Any) -> np.ndarray:
    images = pipe(PROMPTS, num_inference_steps=2, seed=[1, 2, 3], **settings).images
    return np.stack([np.asarray(image) for image in images])


def test_a_bundle_serves_what_its_run_serves(pipe: RoutedPipeline, bundle: Path) -> None:
    own = RoutedPipeline.from_pretrained(bundle, device="cpu")
    assert str(own.base.config._name_or_path) == str(bundle / "model")
    assert own.route(PROMPTS) == pipe.route(PROMPTS)
    for settings in ({"experts": [0, 1, 2]}, {"dense": True}):
        assert np.array_equal(drawn(own, **settings), drawn(pipe, **settings))


def test_a_bundle_is_what_its_manifest_names_and_knows_no_folder_of_this_machine(bundle: Path, finished) -> None:
    files = read(bundle)
    assert set(Manifest.load(bundle).files) == files.keys() - {MANIFEST}
    assert {name.split("/")[0] for name in files if "/" in name} == {"router", "experts", "model"}
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".txt", ".md"}
    for name, content in files.items():
        if name.endswith((".json", ".md")):
            assert str(finished.out.parent).encode() not in content, name
            assert str(Path(finished.config.model).parent).encode() not in content, name


def test_from_pretrained_takes_what_diffusers_does(bundle: Path) -> None:
    loaded = RoutedPipeline.from_pretrained(bundle, revision="main", torch_dtype=torch.bfloat16, device="cpu")
    assert loaded.dtype == torch.bfloat16


def test_what_lies_beside_a_bundle_is_not_read(copied: Path) -> None:
    (copied / "record.json").write_text("no record")
    load_finished(copied, default_host())


def test_a_bundle_of_a_bundle_is_the_same(bundle: Path, tmp_path: Path) -> None:
    aptp.load(bundle, device="cpu").save_pretrained(tmp_path / "again")
    assert read(tmp_path / "again") == read(bundle)


def test_a_bundle_lies_in_a_new_folder_or_an_empty_one(pipe: RoutedPipeline, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    pipe.save_pretrained(tmp_path / "empty")
    assert read(tmp_path / "empty") == read(bundle)
    for place in (bundle, tmp_path / "file"):
        with pytest.raises(RequestError, match="is there already"):
            pipe.save_pretrained(place)


@pytest.mark.parametrize("last", range(0, 12, 3))
def test_a_bundle_that_was_stopped_leaves_nothing(
    pipe: RoutedPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    copy, done = shutil.copyfile, iter(range(last))

    def until(*args: Any) -> None:
        if next(done, None) is None:
            raise KeyboardInterrupt
        copy(*args)

    monkeypatch.setattr(shutil, "copyfile", until)
    with pytest.raises(KeyboardInterrupt):
        pipe.save_pretrained(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_static_pruner_is_a_bundle_too(finished, tmp_path: Path) -> None:
    static = aptp.load(finished.out / "baselines/magnitude", device="cpu")
    static.save_pretrained(tmp_path / "bundle")
    assert np.array_equal(drawn(aptp.load(tmp_path / "bundle", device="cpu")), drawn(static))


def test_a_run_is_served_from_another_folder_than_where_it_was_made(
    finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model and its encoder were given as relative paths; and a bundle of it knows nothing of where that was."""
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    home = tmp_path / "home"
    shutil.copytree(finished.config.model, home / "models/sd")
    shutil.copytree(package_folder(), home / "words")
    given = {"name": "sentence-transformers", "model": "words", "max_tokens": 24}
    edit(run / "router/router.json", lambda data: data.update(home=str(home), model="models/sd", encoder=given))
    monkeypatch.chdir(tmp_path)
    routes = aptp.load(run, device="cpu").route(PROMPTS)
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    assert b"home" not in (tmp_path / "bundle/router/router.json").read_bytes()
    run.rename(home / "run")
    monkeypatch.chdir(home)
    edit(home / "run/router/router.json", lambda data: data.update(home="/nowhere"))
    assert aptp.load(home / "run", device="cpu").route(PROMPTS) == routes
    shutil.rmtree(home)
    assert aptp.load(tmp_path / "bundle", device="cpu").route(PROMPTS) == routes


def test_an_encoder_of_this_machine_travels(finished, bundle: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    encoder = Path(shutil.copytree(package_folder(), tmp_path / "words"))
    (encoder / ".git").mkdir()
    (encoder / ".git/index.json").write_text("{}")
    (encoder / "pytorch_model.bin.index.json").write_text("{}")
    own = {"name": "sentence-transformers", "model": str(encoder), "max_tokens": 24}
    edit(run / "router/router.json", lambda data: data.update(encoder=own))
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    shutil.rmtree(encoder)
    assert json.loads((tmp_path / "bundle/router/router.json").read_text())["encoder"]["model"] == "words"
    routes = aptp.load(tmp_path / "bundle", device="cpu").route(PROMPTS)
    assert routes == aptp.load(bundle, device="cpu").route(PROMPTS)


def edit(file: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def flipped(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        "router/router.json",
        "router/router.safetensors",
        "router/space.json",
        "model/model_index.json",
        "model/scheduler/scheduler_config.json",
        "model/tokenizer/tokenizer.json",
        "model/unet/diffusion_pytorch_model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", [flipped, Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_changed_file_is_refused_by_name(copied: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(copied / name)
    with pytest.raises(RequestError, match=f"'{name}'") as caught:
        aptp.load(copied, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_changed_expert_is_refused_by_name_before_it_draws(copied: Path) -> None:
    flipped(copied / "experts/01/expert.safetensors")
    pipe = aptp.load(copied, device="cpu")
    with pytest.raises(RequestError, match=r"'experts/01/expert\.safetensors' whose content"):
        pipe("a red star", experts=[1], num_inference_steps=1)
    assert pipe("a red star", experts=[0], num_inference_steps=1).experts == [0]


@pytest.mark.parametrize("name", ["model/unet/diffusion_pytorch_model.bin", "experts/00/expert.pt", "router/hook.py"])
def test_company_is_refused_by_name(copied: Path, name: str) -> None:
    (copied / name).write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(RequestError, match=f"'{name}' which its manifest does not name"):
        aptp.load(copied, device="cpu")


def index(**entries: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "model/model_index.json", lambda data: data.update(entries))


def router(**entries: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "router/router.json", lambda data: data.update(entries))


def biased(folder: Path, bias: list[Any]) -> None:
    """A router of another bias."""
    state = load_file(folder / "router/router.safetensors")
    save_file(state | {"__bias__": torch.tensor(bias, dtype=torch.float64)}, folder / "router/router.safetensors")


def linked_calibration(folder: Path) -> None:
    """A calibration that a link makes of a file of somebody else's."""
    secret = folder.with_name("secret.json")
    secret.write_text(json.dumps({"format": 1, "bias": [0, 0, 0], "budget": {"name": "macs", "target": 0.7}}))
    (folder / "calibration.json").symlink_to(secret)


def retrained(folder: Path, embeds: torch.Tensor, texts: object) -> None:
    """Other training prompts."""
    metadata = {"prompts": json.dumps(texts)}
    save_file({"embeds": embeds}, folder / "router/training.safetensors", metadata=metadata)
    Manifest.of(folder).save()


def beside(folder: Path, variant: str = "") -> None:
    """Weights that are said to lie in parts, one of them elsewhere."""
    home = folder / "model/unet"
    (home / "diffusion_pytorch_model.safetensors").unlink()
    parts = {"weight_map": {"conv_in.weight": "../../../outside.safetensors"}}
    (home / f"diffusion_pytorch_model.safetensors.index{variant}.json").write_text(json.dumps(parts))


def pickled(folder: Path) -> None:
    """Weights under the name of a text, which a loader would unpickle."""
    home = folder / "model/unet"
    weights = load_file(home / "diffusion_pytorch_model.safetensors")
    (home / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, home / "weights.txt")
    parts = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "weights.txt")}
    (home / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(parts))


def undefined(folder: Path) -> None:
    """A router of which one value is no number."""
    state = load_file(folder / "router/router.safetensors")
    state["predictor.bias"][0] = float("nan")
    save_file(state, folder / "router/router.safetensors")


def broad(folder: Path) -> None:
    """A space and embeddings that are each as large as may be."""
    edit(folder / "router/space.json", lambda data: data["sites"][0].update(units=2**23))
    edit(folder / "router/router.json", lambda data: data.update(embed=2**16))


def many(folder: Path) -> None:
    """More experts than have files, of a router that makes room for each at once."""
    biased(folder, [0.0] * 150_000)
    router(router={"name": "kmeans"}, embed=2**16)(folder)


MALICE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a part of its own code": ("'unet' is", index(unet=["stowaway", "Model"])),
    "a part of the standard library": ("'unet' is", index(unet=["subprocess", "Popen"])),
    "a part of another library": ("'vae' is", index(vae=["torch", "load"])),
    "a part elsewhere": ("'../unet' is", index(**{"../unet": ["diffusers", "UNet2DConditionModel"]})),
    "a part of three": ("'unet' is", index(unet=["diffusers", "UNet2DConditionModel", "x"])),
    "a pipeline of its own code": ("no pipeline of diffusers", index(_class_name=["stowaway", "Model"])),
    "a pipeline of another kind": ("no pipeline of diffusers", index(_class_name="UNet2DConditionModel")),
    "no pipeline": ("no pipeline of diffusers", index(_class_name=None)),
    "weights elsewhere": ("in another folder", beside),
    "weights elsewhere, in half precision": ("in another folder", lambda folder: beside(folder, ".fp16")),
    "weights to unpickle": ("'weights.txt', which are no safetensors", pickled),
    "an encoder's model elsewhere": (
        "'model/text_encoder/adapter_config.json' would have an adapter loaded",
        lambda folder: (folder / "model/text_encoder/config.json").rename(
            folder / "model/text_encoder/adapter_config.json"
        ),
    ),
    "no experts": ("damaged", lambda folder: biased(folder, [])),
    "an encoder elsewhere": (
        "lies outside",
        router(encoder={"name": "sentence-transformers", "model": "/etc", "max_tokens": 24}),
    ),
    "an encoder above": (
        "lies outside",
        router(encoder={"name": "sentence-transformers", "model": "../words", "max_tokens": 24}),
    ),
    "no strategy": ("unknown router", router(router={"name": "stowaway"})),
    "numbers for names": ("damaged", router(router=3)),
    "a list": ("damaged", lambda folder: (folder / "router/router.json").write_text("[]")),
    "endless brackets": ("damaged", lambda folder: (folder / "router/router.json").write_text("[" * 100_000)),
    "a denoiser that is none": ("no denoiser 'scheduler'", router(component="scheduler")),
    "a denoiser that is a number": ("no denoiser '3'", router(component=3)),
    "options in a list": ("damaged", router(call_options=[3])),
    "an option of nobody's": ("unknown option", router(call_options={"stowaway": 1})),
    "pictures that nobody asked for": ("unknown option", router(call_options={"num_images_per_prompt": 100})),
    "a picture that fills the memory": ("its call options are not", router(call_options={"height": 10**6})),
    "an option in words": ("its call options are not", router(call_options={"output_type": "pil"})),
    "an option without end": ("its call options are not", router(call_options={"guidance_rescale": float("inf")})),
    "a cost below nothing": ("fractions of dense are right", router(fractions=[0.5, -1, 0.5])),
    "a cost that is no number": ("fractions of dense are right", router(fractions=[0.5, float("nan"), 0.5])),
    "loads that are too many": ("its loads are not the shares of 3 experts", router(load=[0.25] * 4)),
    "loads that are no shares": ("its loads are not the shares of 3 experts", router(load=[0.5, 0.5, 0.5])),
    "a load below nothing": ("its loads are not the shares of 3 experts", router(load=[1.5, -0.5, 0])),
    "a load that is no number": ("its loads are not the shares of 3 experts", router(load=[0.5, 0.5, float("nan")])),
    "loads in words": ("damaged", router(load=["many", "some", "few"])),
    "one load": ("damaged", router(load=1)),
    "embeddings without end": ("1 to 65,536 are right", router(embed=10**12)),
    "embeddings of no width": ("1 to 65,536 are right", router(embed=0)),
    "a bias that is no number": ("a finite number for each", lambda folder: biased(folder, [0.0, float("nan"), 0.0])),
    "a bias in rows": ("a finite number for each", lambda folder: biased(folder, [[0.0], [0.0], [0.0]])),
    "a router that is no number": ("holds values that are not finite", undefined),
    "a router without end": ("at most 134,217,728 are right", broad),
    "experts without end": ("at most 134,217,728 are right", many),
    "an encoder that is not said": ("does not say which prompt encoder", router(encoder_fingerprint=None)),
    "another encoder": ("prompt encoder 'minilm' is not what", router(encoder_fingerprint="0")),
    "a calibration elsewhere": ("'calibration.json' which is a link out of it", linked_calibration),
    "a calibration without end": (
        "'calibration.json' which is larger",
        lambda folder: (folder / "calibration.json").write_text(f"[{' ' * 2**20}]"),
    ),
    "no model": ("names no 'model/model_index.json'", lambda folder: shutil.rmtree(folder / "model")),
    "gates without end": (
        "at most 16,777,216 gates",
        lambda folder: edit(folder / "router/space.json", lambda data: data["sites"][0].update(units=10**15)),
    ),
    "fewer experts": ("names no 'experts/02/architecture.json'", lambda folder: shutil.rmtree(folder / "experts/02")),
    "another model": (
        "its weights have changed",
        lambda folder: edit(folder / "router/router.json", lambda data: data.update(model_fingerprint="0")),
    ),
}


@pytest.mark.parametrize("name", MALICE)
def test_malice_under_a_right_manifest_is_refused(copied: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a bundle can write its manifest anew; what it asks for is refused all the same, and never run."""
    words, change = MALICE[name]
    change(copied)
    Manifest.of(copied).save()
    code = "import pathlib\npathlib.Path(__file__).with_name('was_here').touch()\n"
    (copied / "stowaway.py").write_text(code)
    monkeypatch.syspath_prepend(copied)
    with pytest.raises(RequestError, match=words) as caught:
        aptp.load(copied, device="cpu")
    assert "\n" not in str(caught.value)
    assert "stowaway" not in sys.modules
    assert not (copied / "was_here").exists()


@pytest.mark.parametrize(
    ("embeds", "texts"),
    [
        (torch.ones(2, 383), ["one", "two"]),
        (torch.ones(2, 384), ["one"]),
        (torch.ones(2, 384, 1), ["one", "two"]),
        (torch.full((2, 384), torch.nan), ["one", "two"]),
        (torch.ones(2, 384), ["one", 2]),
        (torch.ones(2, 384), {"one": 1, "two": 2}),
        (torch.ones(0, 384), []),
    ],
)
def test_training_prompts_that_fit_nothing_are_refused(copied: Path, embeds: torch.Tensor, texts: object) -> None:
    retrained(copied, embeds, texts)
    pipe = aptp.load(copied, device="cpu")
    for ask in (lambda: pipe.explain("a red star"), lambda: aptp.Monitor.of(pipe.bundle)):
        with pytest.raises(RequestError, match=r"training\.safetensors' is damaged: its? ") as caught:
            ask()
        assert "\n" not in str(caught.value)


EVIL = "\x1b]0;owned\x07 \x9b31m \u202e star"
"""Sets a terminal's title and colour, and writes from right to left."""


def test_a_bundle_s_words_do_not_steer_a_terminal(copied: Path) -> None:
    retrained(copied, torch.ones(1, 384), [EVIL])

    def said(*arguments: str) -> Result:
        done = CliRunner().invoke(app, ["route", str(copied), "a red star", *arguments], env={"APTP_DEBUG": None})
        assert not set(EVIL).intersection("\x1b\x07\x9b\u202e").intersection(done.stdout + done.stderr)
        return done

    for form in ("--csv", "--json"):
        told = said("--explain", form).stdout
        assert r"\u001b]0;owned\u0007 \u009b31m \u202e star" in told
    assert json.loads(told)[0]["nearest"][0]["prompt"] == EVIL
    assert said("--explain").exit_code == 0
    edit(copied / "router/router.json", lambda data: data.update(format=EVIL))
    Manifest.of(copied).save()
    refused = said()
    assert refused.exit_code == 2
    assert r"has format \u001b]0;owned" in refused.stderr


@pytest.mark.parametrize("part", ["router", "model", "experts"])
def test_a_manifest_that_leaves_a_part_out_is_refused(copied: Path, part: str) -> None:
    def leave_out(data: dict[str, Any]) -> None:
        data["files"] = {name: entry for name, entry in data["files"].items() if not name.startswith(f"{part}/")}

    edit(copied / MANIFEST, leave_out)
    with pytest.raises(RequestError, match=f"names no '{part}/"):
        aptp.load(copied, device="cpu")


def test_an_encoder_that_no_manifest_names_is_not_used(copied: Path) -> None:
    (copied / "encoder").mkdir()
    assert len(aptp.load(copied, device="cpu").route(PROMPTS)) == 3


def test_nothing_is_unpickled(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("something was unpickled"))
    pipe = aptp.load(bundle, device="cpu")
    assert len(pipe(PROMPTS, experts=[0, 1, 2], num_inference_steps=1).images) == 3


def cached(bundle: Path, home: Path, revision: str = "main") -> Path:
    """The hub's cache with a bundle in it as `someone/bundle`, as the hub library lays it out: names link to blobs."""
    repository, commit = home / "models--someone--bundle", "0123456789abcdef0123456789abcdef01234567"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / revision).write_text(commit)
    for number, name in enumerate(sorted(read(bundle))):
        link = repository / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, repository / "blobs" / str(number))
        link.symlink_to(repository / "blobs" / str(number))
    return repository / "snapshots" / commit


def test_a_bundle_comes_from_the_hub(
    bundle: Path, pipe: RoutedPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(bundle, tmp_path, "v1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    own = RoutedPipeline.from_pretrained("someone/bundle@v1", device="cpu")
    assert np.array_equal(drawn(own, experts=[0, 1, 2]), drawn(pipe, experts=[0, 1, 2]))


def test_all_that_a_manifest_names_is_fetched(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "model/LICENSE").write_text("Draw no harm.")
    Manifest.of(copied).save()

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for file in huggingface_hub.utils.filter_repo_objects(read(copied), allow_patterns=allow_patterns):
            (tmp_path / "snapshot" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copied / file, tmp_path / "snapshot" / file)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert "model/LICENSE" in Manifest.load(find_bundle("someone/bundle")).files


def test_what_has_no_manifest_does_not_come_from_the_hub(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is trusted: its encoder may lie anywhere."""
    (cached(bundle, tmp_path) / MANIFEST).unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=r"'someone/bundle' is no bundle: it has no manifest\.json"):
        find_bundle("someone/bundle")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/none", "bundle 'someone/none' is no folder, is not in the hub's cache"),
        ("/nowhere/at/all", "neither a folder nor a hub name"),
    ],
)
def test_a_bundle_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        find_bundle(name)


class Hub:
    """Takes the place of `HfApi`, and keeps what it is given."""

    def __init__(self, token: str | None = None) -> None:
        Hub.token, Hub.calls = token, []

    def create_repo(self, repo_id: str, **settings: Any) -> SimpleNamespace:
        Hub.calls.append(("create_repo", settings))
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **settings: Any) -> SimpleNamespace:
        Hub.calls.append(("upload_folder", settings))
        Hub.files = read(Path(folder_path))
        return SimpleNamespace(repo=repo_id)


def test_a_bundle_goes_to_the_hub_in_one_commit(
    pipe: RoutedPipeline, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    commit = pipe.push_to_hub("bundle", private=True, token="secret", create_pr=True)
    assert commit.repo == "someone/bundle"
    assert Hub.token == "secret"
    assert Hub.files == read(bundle)
    made, sent = Hub.calls
    assert made == ("create_repo", {"private": True, "exist_ok": True})
    assert sent[1] == {"commit_message": "Upload a bundle of aptp", "create_pr": True, "delete_patterns": "*"}


def test_a_run_without_a_manifest_is_loaded_as_before(finished) -> None:
    assert load_bundle(finished.out, default_host()).manifest is None


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def test_the_card_carries_the_report_s_figures(bundle: Path, finished) -> None:
    data, text = card_of(bundle)
    assert data == {
        "library_name": "aptp",
        "license": "unknown",
        "pipeline_tag": "text-to-image",
        "tags": ["aptp", "pruning", "diffusers"],
    }
    _, rows = methods_table(finished.record)
    for cell in (cell for row in rows for cell in row):
        assert cell.text in text
    assert len(rows) == 3
    for expert in finished.record.experts:
        assert f"| {expert.index} | {percent(expert.fraction)} |" in text
    assert "minilm (all-MiniLM-L6-v2" in text
    assert "no safety checker" in text
    assert "whose card and licence were not at hand" in text


def test_a_calibration_travels_and_the_card_says_so(finished, bundle: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    said = {"format": 1, "bias": [0.5, 0.0, -0.5], "budget": {"name": "macs", "target": 0.6}}
    (run / "calibration.json").write_text(json.dumps(said))
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle", default_host()).bias.tolist() == [0.5, 0.0, -0.5]
    assert "routes have been calibrated to 0.6 of the dense macs" in card_of(tmp_path / "bundle")[1]
    assert "calibrated" not in card_of(bundle)[1]


def test_the_base_model_s_licence_travels(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, where a model has its card and licence."""
    repository = tmp_path / "models--someone--sd"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(finished.config.model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(snapshot.name)
    metadata = "license: other\nlicense_name: open-picture\nlicense_link: LICENSE.md"
    (snapshot / "README.md").write_text(f"---\n{metadata}\n---\n# A model\n")
    (snapshot / "LICENSE.md").write_text("Draw no harm.")
    (snapshot / "sd.ckpt").write_bytes(b"\x80")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    edit(run / "router/router.json", lambda data: data.update(model="someone/sd"))
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    assert (tmp_path / "bundle/model/LICENSE.md").read_text() == "Draw no harm."
    assert not (tmp_path / "bundle/model/sd.ckpt").exists()
    data, text = card_of(tmp_path / "bundle")
    assert data["base_model"] == "someone/sd"
    assert (data["license"], data["license_name"]) == ("other", "open-picture")
    assert data["license_link"] == "model/LICENSE.md"
    assert "with LICENSE.md and README.md" in text


def test_the_licence_travels_with_an_adapted_model_too(finished, tmp_path: Path) -> None:
    base = Path(shutil.copytree(finished.config.model, tmp_path / "sd"))
    (base / "README.md").write_text("---\nlicense: openrail\n---\n# A model\n")
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    edit(run / "router/router.json", lambda data: data.update(model=str(base)))
    shutil.copytree(finished.config.model, run / "model")  # as adaptation leaves it, without a card
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    assert (tmp_path / "bundle/model/README.md").read_bytes() == (base / "README.md").read_bytes()
    assert card_of(tmp_path / "bundle")[0]["license"] == "openrail"


def test_a_safety_checker_travels(finished, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    model = Path(shutil.copytree(finished.config.model, tmp_path / "sd"))
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=tiny, vision_config=tiny | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(model / "safety_checker")
    CLIPImageProcessor(size=8, crop_size=8).save_pretrained(model / "feature_extractor")
    entries = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    edit(model / "model_index.json", lambda data: data.update(entries))
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    print_of = pipeline_fingerprint(load_pipeline(str(model), torch.device("cpu")))
    edit(run / "router/router.json", lambda data: data.update(model=str(model), model_fingerprint=print_of))
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    own = aptp.load(tmp_path / "bundle", device="cpu")
    assert type(own.base.safety_checker) is StableDiffusionSafetyChecker
    assert "sees every picture" in card_of(tmp_path / "bundle")[1]


@pytest.mark.parametrize("metadata", ["", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: 3\n---\n"])
def test_a_base_model_s_broken_card_is_no_obstacle(pipe: RoutedPipeline, tmp_path: Path, metadata: str) -> None:
    (tmp_path / "README.md").write_text(f"{metadata}# A model\n")
    assert isinstance(_terms(tmp_path), dict)


def test_without_a_record_the_card_has_no_figures(finished, tmp_path: Path) -> None:
    for part in ("router", "experts"):
        shutil.copytree(finished.out / part, tmp_path / "run" / part)
    aptp.load(tmp_path / "run", device="cpu").save_pretrained(tmp_path / "bundle")
    assert "## Figures" not in card_of(tmp_path / "bundle")[1]


def test_experts_that_share_their_weights_travel_as_one_set(finished, pipe: RoutedPipeline, tmp_path: Path) -> None:
    """As a run leaves them whose recovery was all joint; here the weights are the dense model's."""
    run = Path(shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints")))
    share_weights(pipe.dense, run / "experts")
    aptp.load(run, device="cpu").save_pretrained(tmp_path / "bundle")
    names = [name for name in Manifest.load(tmp_path / "bundle").files if name.startswith("experts/")]
    assert [name for name in names if name.endswith(".safetensors")] == [f"experts/{SHARED}"]
    assert "All are slices of one set of weights" in card_of(tmp_path / "bundle")[1]
    own = aptp.load(tmp_path / "bundle", device="cpu")
    architecture = aptp.Architecture.load(tmp_path / "bundle/experts/01/architecture.json")
    sliced = aptp.slice(pipe.dense, architecture.space, architecture).state_dict()
    assert all(torch.equal(value, sliced[name]) for name, value in own.expert(1).state_dict().items())
    flipped(tmp_path / f"bundle/experts/{SHARED}")
    with pytest.raises(RequestError, match=r"shared\.safetensors' whose content"):
        aptp.load(tmp_path / "bundle", device="cpu").expert(0)
