"""Pictures of a run's models, and the dense model's in the cache."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import aptp
from aptp.core.cache import key_of
from aptp.core.errors import RequestError
from aptp.harness import drawing
from aptp.harness.drawing import draw_dense, draw_pictures
from aptp.harness.workspace import Workspace
from aptp.pipeline import RoutedPipeline

PROMPTS, SEEDS = ["a red star", "a dot", "the word GO"], [0, 1, 2]


@pytest.fixture(scope="module")
def pipe(finished) -> RoutedPipeline:
    return aptp.load(finished.out, device="cpu")


def bits(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def draw(work: Workspace, pipe: RoutedPipeline, folder: Path) -> None:
    prompts = work.validation.prompts().text[:8]
    draw_pictures(work, pipe, folder, prompts, list(range(8)), [0, 1, 2, -1, 0, 1, 0, 0])


def test_pictures_are_drawn_once_and_the_same_after_an_interruption(
    open_work, pipe: RoutedPipeline, tmp_path: Path
) -> None:
    work = open_work(evaluate={"batch": 1, "steps": 1})
    draw(work, pipe, tmp_path / "whole")
    whole = bits(tmp_path / "whole")
    assert list(whole) == [f"{i:03d}.png" for i in range(8)]
    times = [file.stat().st_mtime_ns for file in sorted((tmp_path / "whole").iterdir())]
    draw(work, pipe, tmp_path / "whole")
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "whole").iterdir())] == times
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for missing in ("002.png", "006.png", "007.png"):
        (tmp_path / "resumed" / missing).unlink()
    (tmp_path / "resumed/003.png").write_bytes(whole["003.png"][:-9])
    (tmp_path / "resumed/005.png").write_bytes(b"")
    draw(work, pipe, tmp_path / "resumed")
    assert bits(tmp_path / "resumed") == whole


def test_drawing_in_bf16_changes_pictures_by_rounding_alone(open_work, pipe: RoutedPipeline, tmp_path: Path) -> None:
    import numpy as np

    for precision in ("fp32", "bf16"):
        draw(open_work(evaluate={"steps": 4, "precision": precision}), pipe, tmp_path / precision)
    pairs = [[Image.open(tmp_path / p / f"{i:03d}.png") for p in ("fp32", "bf16")] for i in range(8)]
    apart = [np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean() for a, b in pairs]
    assert 0 < max(apart) < 4  # of 255


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where pictures that were drawn were written, one after another."""
    paths: list[Path] = []
    save = drawing.save_picture

    def spy(image: Image.Image, path: Path) -> None:
        paths.append(path)
        save(image, path)

    monkeypatch.setattr(drawing, "save_picture", spy)
    return paths


def dense(work: Workspace, pipe: RoutedPipeline, folder: Path, **changes) -> dict[str, bytes]:
    """The dense model's pictures as that run has them."""
    draw_dense(work, pipe, folder, **{"prompts": PROMPTS, "seeds": SEEDS, **changes})
    return bits(folder)


@pytest.fixture
def work(open_work, tmp_path: Path) -> Workspace:
    """A run with a cache of its own."""
    return open_work(prepare={"cache": str(tmp_path / "cache")}, evaluate={"steps": 1})


def test_the_dense_model_draws_once_for_all_runs(work: Workspace, pipe, drawn: list[Path], tmp_path: Path) -> None:
    first = dense(work, pipe, tmp_path / "first/dense")
    assert len(drawn) == len(first) == 3
    draw_pictures(work, pipe, tmp_path / "itself", PROMPTS, SEEDS, [-1] * 3)
    assert bits(tmp_path / "itself") == first
    drawn.clear()
    (tmp_path / "first/dense/001.png").write_bytes(b"painted over")
    assert dense(work, pipe, tmp_path / "second/dense") == first
    assert dense(work, pipe, tmp_path / "second/dense-1", steps=1) == first
    shutil.rmtree(tmp_path / "cache")
    assert dense(work, pipe, tmp_path / "second/dense") == first  # a run that has them asks for no cache
    assert drawn == []


@pytest.mark.parametrize(
    "changes", [{"prompts": [*PROMPTS[:2], "the word NO"]}, {"seeds": [0, 1, 3]}, {"steps": 2}], ids=str
)
def test_other_questions_have_pictures_of_their_own(work, pipe, tmp_path: Path, changes: dict) -> None:
    first = dense(work, pipe, tmp_path / "first/dense")
    other = dense(work, pipe, tmp_path / "other/dense", **changes)
    assert other != first == dense(work, pipe, tmp_path / "again/dense")


def all_that_counts(work: Workspace, pipe: RoutedPipeline) -> bytes:
    return key_of(drawing._depends_on(work, pipe, PROMPTS, SEEDS, 1))


@pytest.mark.parametrize("changes", [{"guidance": 1.0}, {"batch": 1}, {"precision": "bf16"}], ids=str)
def test_other_ways_to_draw_count(work: Workspace, pipe, open_work, changes: dict) -> None:
    other = open_work(evaluate={"steps": 1, **changes})
    assert all_that_counts(other, pipe) != all_that_counts(work, pipe)
    assert all_that_counts(open_work(evaluate={"steps": 1, "prompts": 4}, experts=2), pipe) == all_that_counts(
        work, pipe
    )


def weights_of(name: str) -> Callable[[RoutedPipeline], None]:
    def change(pipe: RoutedPipeline) -> None:
        with torch.no_grad():
            next(getattr(pipe.base, name).parameters()).mul_(1.5)

    return change


def scheduler_of(pipe: RoutedPipeline) -> None:
    scheduler = pipe.base.scheduler
    pipe.base.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")


def other_scheduler_of(pipe: RoutedPipeline) -> None:
    from diffusers import DDPMScheduler

    pipe.base.scheduler = DDPMScheduler.from_config(pipe.base.scheduler.config)


def tokens_of(pipe: RoutedPipeline) -> None:
    pipe.base.tokenizer.add_tokens(["star"])


CHANGES = {
    **{name: weights_of(name) for name in ("unet", "vae", "text_encoder")},
    "a tokenizer": tokens_of,
    "a text encoder's settings": lambda pipe: setattr(pipe.base.text_encoder.config, "hidden_act", "relu"),
    "a scheduler's settings": scheduler_of,
    "a scheduler": other_scheduler_of,
    "a pipeline's settings": lambda pipe: pipe.base.register_to_config(requires_safety_checker=True),
    "a VAE's settings": lambda pipe: pipe.base.vae.register_to_config(scaling_factor=0.5),
    "a call's options": lambda pipe: pipe.bundle.call_options.update(clip_skip=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_models_count(work: Workspace, finished, change: Callable[[RoutedPipeline], None]) -> None:
    pipe = aptp.load(finished.out, device="cpu")
    before = all_that_counts(work, pipe)
    assert all_that_counts(work, aptp.load(finished.out, device="cpu")) == before
    change(pipe)
    assert all_that_counts(work, pipe) != before


def test_other_devices_and_libraries_count(work: Workspace, pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_that_counts(work, pipe)
    elsewhere = dataclasses.replace(work, device=torch.device("meta"))
    assert all_that_counts(elsewhere, pipe) != before
    version = drawing.metadata.version
    monkeypatch.setattr(drawing.metadata, "version", lambda name: version(name) + "+next")
    assert all_that_counts(work, pipe) != before


def test_damaged_pictures_are_drawn_anew(work: Workspace, pipe, drawn: list[Path], tmp_path: Path) -> None:
    first = dense(work, pipe, tmp_path / "first/dense")
    (cached,) = {path.parent for path in drawn}
    flipped = bytearray(first["001.png"])
    flipped[len(flipped) // 2] ^= 1
    (cached / "001.png").write_bytes(bytes(flipped))
    Image.new("RGB", (3, 3)).save(cached / "002.png")
    (cached / ".002.png.x").write_bytes(b"half a picture")
    assert dense(work, pipe, tmp_path / "second/dense") == first
    assert bits(cached) == first
    assert not list(cached.glob(".*.png.*"))


def test_a_cache_that_cannot_be_written_is_left_alone(work, pipe, drawn: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert len(dense(work, pipe, tmp_path / "first/dense")) == 3
    assert {path.parent for path in drawn} == {tmp_path / "first/dense"}


def test_processes_that_see_other_caches_are_told(work: Workspace, pipe, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drawing, "draw_pictures", lambda *given: None)
    with pytest.raises(RequestError, match=r"000.png' elsewhere: all processes of a run have to see one folder"):
        dense(work, pipe, tmp_path / "first/dense")


def test_of_runs_at_once_one_draws(work: Workspace, finished, drawn: list[Path], tmp_path: Path) -> None:
    """As threads here: the lock is the file system's."""
    pipes = [aptp.load(finished.out, device="cpu") for _ in range(2)]
    threads = [
        threading.Thread(target=dense, args=(work, pipe, tmp_path / f"{number}/dense"))
        for number, pipe in enumerate(pipes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 3
    assert bits(tmp_path / "0/dense") == bits(tmp_path / "1/dense")
