"""What a router's folder says of its prompt encoder, and what is refused where that has changed since."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aptp.bundle import Bundle, load_bundle, save_router
from aptp.config import Choice
from aptp.core.architecture import SearchSpace
from aptp.core.errors import RequestError
from aptp.core.router import PromptBatch
from aptp.host import default_host
from aptp.plugins.encoders.minilm import package_folder
from aptp.routing import read

FIRST, SECOND = "1" * 40, "2" * 40
"""Commits of the hub's repository `someone/words`."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of a sentence encoder, whose default branch has moved on to other weights."""
    repository = tmp_path / "models--someone--words"
    for commit in (FIRST, SECOND):
        shutil.copytree(package_folder(), repository / "snapshots" / commit)
    weights = repository / "snapshots" / SECOND / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\x00\x00"
    weights.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(FIRST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return repository


def saved(finished, run: Path) -> Path:
    """A run's router, with the encoder from the hub in place of its own."""
    own, config, host = load_bundle(finished.out, default_host()), finished.config, default_host()
    choice = Choice(name="sentence-transformers", model="someone/words", max_tokens=24)
    encoder = host.create("encoder", choice.name, choice.options)
    save_router(
        run / "router",
        router=own.router,
        space=SearchSpace.from_dict(json.loads((finished.out / "router/space.json").read_text())),
        router_choice=config.router,
        balancer=config.balancer,
        encoder_choice=choice,
        encoder=encoder,
        relaxation=config.relaxation,
        training=PromptBatch(["a red star"], encoder.encode(["a red star"])),
        bias=own.own_bias,
        threshold=0.5,
        fractions=own.fractions,
        load=torch.tensor(own.load),
        budget=config.budget,
        model=own.model,
        model_fingerprint=own.model_fingerprint,
        denoiser=SimpleNamespace(component=own.component, call_options={}),
    )
    return run


def embeds(bundle: Bundle) -> torch.Tensor:
    return bundle.encoder.encode(["a red star", "the word STOP"])


def test_an_encoder_of_the_hub_is_the_commit_that_it_was(finished, repository: Path, tmp_path: Path) -> None:
    run = saved(finished, tmp_path / "run")
    said = json.loads((run / "router/router.json").read_text())
    assert said["encoder"]["revision"] == FIRST
    before = load_bundle(run, default_host())
    assert said["encoder_fingerprint"] == before.encoder.fingerprint()
    (repository / "refs/main").write_text(SECOND)
    after = load_bundle(run, default_host())
    assert after.encoder.revision == FIRST
    assert torch.equal(embeds(before), embeds(after))
    shutil.rmtree(repository / "snapshots" / FIRST)
    with pytest.raises(RequestError, match=f"encoder 'someone/words' .revision '{FIRST}'. is neither"):
        load_bundle(run, default_host())


def test_an_encoder_that_has_changed_is_refused(finished, repository: Path, tmp_path: Path) -> None:
    run = saved(finished, tmp_path / "run")
    shutil.rmtree(repository / "snapshots" / FIRST)
    (repository / "snapshots" / SECOND).rename(repository / "snapshots" / FIRST)
    with pytest.raises(RequestError, match=r"prompt encoder 'someone/words' is not what '.*run' was trained with"):
        load_bundle(run, default_host())
    file = run / "router/router.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if name != "encoder_fingerprint"}
    file.write_text(json.dumps(old))
    assert load_bundle(run, default_host()).encoder, "a run from before it was kept"


def test_an_encoder_of_another_width_is_refused(finished) -> None:
    bundle = load_bundle(finished.out, default_host())
    wrong = replace(bundle, encoder=SimpleNamespace(encode=lambda texts: torch.ones(len(texts), 5)))
    with pytest.raises(RequestError, match="gives 5 numbers and its router reads 384; they do not belong together"):
        read(wrong, ["a red star"])
