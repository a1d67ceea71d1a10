"""The routed pipeline: who draws what, whatever else is asked at the same time."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import aptp
from aptp.core.errors import RequestError
from aptp.core.record import Record
from aptp.pipeline import RoutedPipeline, seeds_from

DRAWING = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe(finished) -> RoutedPipeline:
    return aptp.load(finished.out, device="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """A thousand different prompts of one to sixteen words."""
    words = ["a", "red", "star", "word", "in", "the", "STOP", "left of", "big", "über", "星", "dots,", "gradient?"]
    draw = random.Random(0)
    return sorted({" ".join(draw.choices(words, k=draw.randint(1, 16))) for _ in range(1100)})[:1000]


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in images])


def one_sentence(error: BaseException) -> bool:
    return str(error) != "" and "\n" not in str(error)


@pytest.mark.slow
def test_a_route_is_a_function_of_the_prompt_alone(pipe: RoutedPipeline, prompts: list[str]) -> None:
    together = {route.prompt: route for route in pipe.route(prompts)}
    assert len({route.expert for route in together.values()}) == 3
    shuffled = random.Random(1).sample(prompts, len(prompts))
    sevens = [route for start in range(0, 140, 7) for route in pipe.route(shuffled[start : start + 7])]
    alone = [pipe.route([prompt])[0] for prompt in shuffled[-60:]]
    for route in [*pipe.route(shuffled[:400]), *sevens, *alone]:
        assert route.expert == together[route.prompt].expert, route.prompt
        assert route.margin == pytest.approx(together[route.prompt].margin, abs=1e-5)


def test_a_route_tells_the_cost_of_its_expert(pipe: RoutedPipeline, finished, prompts: list[str]) -> None:
    for route in pipe.route(prompts[:20]):
        assert route.cost == pytest.approx(finished.record.experts[route.expert].fraction)
        assert route.margin >= 0


def test_pictures_come_in_the_order_asked_and_each_stands_alone(pipe: RoutedPipeline, prompts: list[str]) -> None:
    of: dict[int, list[str]] = {}
    for route in pipe.route(prompts):
        of.setdefault(route.expert, []).append(route.prompt)
    asked = [text for texts in of.values() for text in texts[:2]]
    assert len(asked) == 6
    seeds = [7, 8, 9, 10, 11, 12]
    together = pipe(asked, seed=seeds, **DRAWING)
    assert together.experts == [route.expert for route in pipe.route(asked)]
    assert len(set(together.experts)) == 3
    assert [image.size for image in together.images] == [(16, 16)] * 6
    order = [4, 0, 5, 2, 1, 3]
    other = pipe([asked[i] for i in order], seed=[seeds[i] for i in order], batch_size=2, **DRAWING)
    alone = [pipe(asked[i], seed=seeds[i], **DRAWING).images[0] for i in order]
    expected = pixels([together.images[i] for i in order])
    assert np.abs(pixels(other.images) - expected).max() <= 1
    assert np.abs(pixels(alone) - expected).max() <= 1
    latents = pipe(asked[:2], seed=3, experts=[0, 0], output_type="np", **DRAWING).images
    single = pipe(asked[1], seed=3, experts=[0], output_type="np", **DRAWING).images
    assert np.abs(latents[1] - single[0]).max() <= 1e-3


def test_dense_is_the_base_pipeline_bit_for_bit(pipe: RoutedPipeline) -> None:
    asked = ["a red star", "the word STOP"]
    noise = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    expected = pipe.base(asked, generator=noise, **DRAWING).images
    drawn = pipe(asked, seed=[5, 6], dense=True, **DRAWING)
    assert drawn.experts == [-1, -1]
    assert np.array_equal(pixels(drawn.images), pixels(expected))


def test_an_expert_in_the_stock_pipeline_draws_the_same(pipe: RoutedPipeline, finished) -> None:
    drawn = pipe("a red star", seed=5, experts=[1], **DRAWING).images
    pipe.base.unet = aptp.load_expert(finished.out / "experts/01")
    try:
        expected = pipe.base("a red star", generator=[torch.Generator().manual_seed(5)], **DRAWING).images
    finally:
        pipe.base.unet = pipe.dense
    assert np.array_equal(pixels(drawn), pixels(expected))


def test_experts_can_be_chosen(pipe: RoutedPipeline) -> None:
    drawn = pipe(["a red star"] * 3, seed=[1, 1, 1], experts=[2, 0, 2], **DRAWING)
    assert drawn.experts == [2, 0, 2]
    first, other, second = pixels(drawn.images)
    assert np.abs(first - second).max() <= 1
    assert np.abs(first - other).max() > 1
    with pytest.raises(RequestError, match="no expert 3; this run has 3"):
        pipe("a red star", experts=[3], **DRAWING)
    with pytest.raises(RequestError, match="as many seeds and experts, not 1 and 2"):
        pipe("a red star", experts=[1, 2], **DRAWING)
    with pytest.raises(RequestError, match="as many seeds and experts, not 3 and 1"):
        pipe("a red star", seed=[1, 2, 3], **DRAWING)


def test_repetitions_of_a_prompt_have_noise_of_their_own(pipe: RoutedPipeline) -> None:
    assert seeds_from(4, ["a", "b", "a", "a", "b"]) == [4, 4, 5, 6, 5]
    images = pixels(pipe(["a red star", "a blue dot", "a red star"], seed=4, **DRAWING).images)
    assert np.abs(images[0] - images[2]).max() > 1
    again = pixels(pipe(["a red star", "a red star"], seed=4, **DRAWING).images)
    assert np.abs(again - images[[0, 2]]).max() <= 1


def test_progress_counts_every_picture(pipe: RoutedPipeline) -> None:
    done: list[int] = []
    pipe(["a", "b", "c"], experts=[0, 1, 0], batch_size=1, advance=done.append, num_inference_steps=1)
    assert done == [1, 1, 1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "there is no prompt"),
        ("", "prompt 1 is empty"),
        (["a star", "  \n"], "prompt 2 is empty"),
        (["x" * 10_000], "prompt 1 has 10,000 characters"),
        (["fine", "\ud83d star"], "prompt 2 is broken Unicode"),
    ],
)
def test_bad_prompts_are_refused(pipe: RoutedPipeline, asked: str | list[str], words: str) -> None:
    for call in (pipe, pipe.route):
        with pytest.raises(RequestError, match=words):
            call(asked)


def test_the_longest_allowed_prompt_is_served(pipe: RoutedPipeline) -> None:
    assert pipe("a " * 4999 + "a", num_inference_steps=1).images[0].size == (16, 16)


def test_the_base_model_is_back_after_an_error(pipe: RoutedPipeline) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        pipe("a red star", experts=[0], callback_on_step_end=fail, **DRAWING)
    assert pipe.base.unet is pipe.dense


@pytest.fixture
def copied(finished, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "checkpoints", "baselines"))
    return tmp_path / "run"


def edit(file: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no router.json": lambda run: (run / "router/router.json").unlink(),
    "no space.json": lambda run: (run / "router/space.json").unlink(),
    "no state": lambda run: (run / "router/router.safetensors").unlink(),
    "truncated state": lambda run: truncate(run / "router/router.safetensors"),
    "truncated router.json": lambda run: truncate(run / "router/router.json"),
    "truncated space.json": lambda run: truncate(run / "router/space.json"),
    "not JSON": lambda run: (run / "router/router.json").write_bytes(b"\xff\x00"),
    "a list": lambda run: (run / "router/router.json").write_text("[1, 2]"),
    "another format": lambda run: edit(run / "router/router.json", lambda d: d.update(format=99)),
    "no costs": lambda run: edit(run / "router/router.json", lambda d: d.pop("fractions")),
    "too few costs": lambda run: edit(run / "router/router.json", lambda d: d["fractions"].pop()),
    "unknown router": lambda run: edit(run / "router/router.json", lambda d: d["router"].update(name="contrastiv")),
    "unknown option": lambda run: edit(run / "router/router.json", lambda d: d["router"].update(wieght=1)),
    "another width": lambda run: edit(run / "router/router.json", lambda d: d.update(embed=7)),
    "a site less": lambda run: edit(run / "router/space.json", lambda d: d["sites"].pop()),
    "a site of no units": lambda run: edit(run / "router/space.json", lambda d: d["sites"][0].update(units=0)),
    "changed base": lambda run: edit(run / "router/router.json", lambda d: d.update(model_fingerprint="0")),
    "base gone": lambda run: edit(run / "router/router.json", lambda d: d.update(model="/nowhere")),
}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_refused_in_one_sentence(copied: Path, name: str) -> None:
    DAMAGE[name](copied)
    with pytest.raises(RequestError) as caught:
        aptp.load(copied, device="cpu")
    assert one_sentence(caught.value)


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_damaged_expert_is_refused_when_it_is_needed(copied: Path, damage: str) -> None:
    weights = copied / "experts/01/expert.safetensors"
    weights.unlink() if damage == "gone" else truncate(weights)
    pipe = aptp.load(copied, device="cpu")
    with pytest.raises(RequestError, match="experts/01") as caught:
        pipe("a red star", experts=[1], num_inference_steps=1)
    assert one_sentence(caught.value)
    assert pipe("a red star", experts=[0], num_inference_steps=1).experts == [0]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RequestError, match="is no run with a router"):
            aptp.load(folder)


def test_a_baseline_can_be_served_too(finished) -> None:
    static = aptp.load(finished.out / "baselines/magnitude", device="cpu")
    record = Record.load(finished.out / "baselines/magnitude/record.json")
    (route,) = static.route(["a red star"])
    assert (route.expert, route.margin) == (0, float("inf"))
    assert route.cost == pytest.approx(record.experts[0].fraction)
