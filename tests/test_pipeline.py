"""The routed pipeline: who draws what, whatever else is asked at the same time."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import nn

import aptp
from aptp.bundle import Bundle
from aptp.core.errors import RequestError
from aptp.core.record import Record
from aptp.experts import size_of
from aptp.models import load_pipeline
from aptp.pipeline import RoutedPipeline

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
    sevens = [route for start in range(0, 70, 7) for route in pipe.route(shuffled[start : start + 7])]
    alone = [pipe.route([prompt])[0] for prompt in shuffled[-40:]]
    for route in [*pipe.route(shuffled[:200]), *sevens, *alone]:
        assert route.expert == together[route.prompt].expert, route.prompt
        assert route.margin == pytest.approx(together[route.prompt].margin, abs=1e-5)


def test_a_route_tells_the_cost_of_its_expert(pipe: RoutedPipeline, finished, prompts: list[str]) -> None:
    for route in pipe.route(prompts[:20]):
        assert route.cost == pytest.approx(finished.record.experts[route.expert].fraction)
        assert route.margin >= 0


def test_pictures_come_in_the_order_asked_and_each_stands_alone(pipe: RoutedPipeline, prompts: list[str]) -> None:
    of: dict[int, list[str]] = {}
    for route in pipe.route(prompts[::2]):
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


@pytest.fixture(scope="module")
def embedded() -> RoutedPipeline:
    """The embedded model with three random experts, which nobody routes to."""
    base = load_pipeline("tiny", torch.device("cpu"))
    space, keeps = aptp.search_space(base.unet), (0.5, 0.7, 0.9)
    experts = [aptp.slice(base.unet, space, aptp.Architecture.random(space, keep, seed=0)) for keep in keeps]
    bundle = SimpleNamespace(
        component="unet", expert=lambda index, dtype: experts[index], fractions=list(keeps), call_options={}
    )
    return RoutedPipeline(Path(), bundle, base)


@pytest.mark.slow
def test_a_picture_does_not_depend_on_what_else_is_asked(embedded: RoutedPipeline) -> None:
    things = ("star", "dot", "square", "word", "ring", "cross", "stripe", "bar")
    asked = [f"a {colour} {thing}" for colour in ("red", "blue", "green", "grey") for thing in things]
    experts = [(3 * place) % 7 % 4 - 1 for place in range(32)]
    drawing = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    mixed = embedded(asked, seed=range(32), experts=experts, **drawing).images
    order = random.Random(0).sample(range(32), 32)
    permuted = embedded([asked[i] for i in order], seed=order, experts=[experts[i] for i in order], **drawing).images
    assert np.abs(permuted - mixed[order]).max() <= 1e-4
    for place in (0, 1, 2, 4, 31):
        alone = embedded(asked[place], seed=place, experts=[experts[place]], **drawing).images
        assert np.abs(alone[0] - mixed[place]).max() <= 1e-4
        assert np.abs(alone[0] - mixed[place - 1]).max() > 1e-2, "another picture is further off than rounding"


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


def test_a_denoiser_of_the_caller_s_is_put_back(pipe: RoutedPipeline) -> None:
    mine = pipe.base.unet = copy.deepcopy(pipe.dense)
    try:
        pipe("a red star", experts=0, **DRAWING)
        assert pipe.base.unet is mine
    finally:
        pipe.base.unet = pipe.dense


def test_experts_can_be_chosen(pipe: RoutedPipeline) -> None:
    drawn = pipe(["a red star"] * 3, seed=[1, 1, 1], experts=[2, 0, 2], **DRAWING)
    assert drawn.experts == [2, 0, 2]
    first, other, second = pixels(drawn.images)
    assert np.abs(first - second).max() <= 1
    assert np.abs(first - other).max() > 1
    assert pipe(["a red star"] * 2, experts=np.int64(2), **DRAWING).experts == [2, 2]
    with pytest.raises(RequestError, match=r"experts is 0\.0; a whole number from -1 is right"):
        pipe("a red star", experts=[0.0], **DRAWING)
    with pytest.raises(RequestError, match="no expert 3; this run has 3"):
        pipe("a red star", experts=[3], **DRAWING)
    with pytest.raises(RequestError, match="experts has 2 entries; one a prompt is right, 1 in all"):
        pipe("a red star", experts=[1, 2], **DRAWING)
    with pytest.raises(RequestError, match="seed has 3 entries"):
        pipe("a red star", seed=[1, 2, 3], **DRAWING)


def test_repetitions_of_a_prompt_have_noise_of_their_own(pipe: RoutedPipeline) -> None:
    images = pixels(pipe(["a red star", "a blue dot", "a red star"], seed=4, **DRAWING).images)
    assert np.abs(images[0] - images[2]).max() > 1
    again = pixels(pipe(["a red star", "a red star"], seed=4, **DRAWING).images)
    assert np.abs(again - images[[0, 2]]).max() <= 1


def test_a_prompt_may_have_several_pictures(pipe: RoutedPipeline) -> None:
    several = pipe(["a red star", "a blue dot"], num_images_per_prompt=2, seed=4, experts=[1, 0], **DRAWING)
    assert several.experts == [1, 1, 0, 0]
    assert several.costs == [pipe.bundle.fractions[index] for index in several.experts]
    single = [pipe("a red star", seed=seed, experts=[1], **DRAWING).images[0] for seed in (4, 5)]
    assert np.abs(pixels(several.images[:2]) - pixels(single)).max() <= 1
    repeated = pipe(["a red star"] * 2 + ["a blue dot"] * 2, seed=4, experts=[1, 1, 0, 0], **DRAWING)
    assert np.abs(pixels(several.images) - pixels(repeated.images)).max() <= 1


def test_generators_are_those_of_diffusers(pipe: RoutedPipeline) -> None:
    one = pipe("a red star", generator=torch.Generator().manual_seed(5), dense=True, **DRAWING).images
    expected = pipe.base("a red star", generator=torch.Generator().manual_seed(5), **DRAWING).images
    assert np.array_equal(pixels(one), pixels(expected))
    own = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    two = pipe("a red star", generator=own, num_images_per_prompt=2, experts=[0], **DRAWING).images
    assert np.array_equal(pixels(two), pixels(pipe(["a red star"] * 2, seed=[5, 6], experts=[0, 0], **DRAWING).images))


@pytest.mark.parametrize("kind", ["np", "pt", "latent"])
def test_pictures_come_as_asked(pipe: RoutedPipeline, kind: str) -> None:
    asked = ["a red star", "a blue dot", "a"]
    drawn = pipe(asked, seed=[5, 6, 7], experts=[0, -1, 0], output_type=kind, **DRAWING)
    expected = pipe.base(asked[1], generator=[torch.Generator().manual_seed(6)], output_type=kind, **DRAWING).images
    assert type(drawn.images) is type(expected)
    assert drawn.images.shape == (3, *expected.shape[1:])
    assert np.array_equal(np.asarray(drawn.images[1]), np.asarray(expected[0]))


def test_a_prompt_of_little_lead_may_fall_back_to_the_dense_model(pipe: RoutedPipeline, prompts: list[str]) -> None:
    routes = sorted(pipe.route(prompts[:9]), key=lambda route: route.margin)
    asked = [route.prompt for route in routes]
    limit = (routes[3].margin + routes[4].margin) / 2
    fallen = pipe.route(asked, fallback_margin=limit)
    assert [route.expert for route in fallen] == [-1] * 4 + [route.expert for route in routes[4:]]
    assert [route.cost for route in fallen[:4]] == [1.0] * 4
    assert [route.margin for route in fallen] == pytest.approx([route.margin for route in routes])
    drawn = pipe(asked, fallback_margin=limit, num_inference_steps=1)
    assert (drawn.experts, drawn.costs) == ([r.expert for r in fallen], [r.cost for r in fallen])
    for bad in (-0.1, float("nan")):
        with pytest.raises(RequestError, match="fallback margin"):
            pipe.route(asked, fallback_margin=bad)


def test_embeddings_come_with_a_text_to_route_by_or_an_expert(pipe: RoutedPipeline) -> None:
    asked = ["a red star", "the word STOP", "a blue dot"]
    usual = pipe(asked, output_type="np", **DRAWING)
    embeds, negative = pipe.base.encode_prompt(asked, "cpu", 1, True)
    for given in ({}, {"negative_prompt_embeds": negative}):
        routed = pipe(asked, prompt_embeds=embeds, output_type="np", batch_size=1, **given, **DRAWING)
        assert routed.experts == usual.experts
        assert np.abs(routed.images - usual.images).max() <= 1e-4
    chosen = pipe(prompt_embeds=embeds, experts=usual.experts, output_type="np", **DRAWING)
    assert np.abs(chosen.images - usual.images).max() <= 1e-4
    for prompts, given in ((None, {}), (None, {"prompt_embeds": embeds}), (None, {"dense": True})):
        with pytest.raises(RequestError, match="give its text, or its prompt_embeds and an expert"):
            pipe(prompts, **given)


def test_every_step_of_every_batch_is_told(pipe: RoutedPipeline) -> None:
    steps: list[tuple[int, int]] = []

    def see(base, step: int, time, tensors: dict) -> dict:
        assert base is pipe.base
        assert base.unet is pipe.expert(len(steps) // 4)
        steps.append((step, len(tensors["prompt_embeds"])))
        return tensors

    pipe(
        ["a", "b", "c"] * 2,
        experts=[0, 1] * 3,
        batch_size=2,
        callback_on_step_end=see,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        **DRAWING,
    )
    assert steps == [(0, 4), (1, 4), (0, 2), (1, 2)] * 2, "both halves of classifier-free guidance"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; a whole number from 1"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'"),
        ({"hight": 16}, "unknown option of a routed StableDiffusionPipeline 'hight'; did you mean 'height'"),
        ({"prompt": "a star"}, "it takes no prompt="),
        ({"return_dict": False}, "'return_dict'"),
        ({"height": 15, "width": 15}, "StableDiffusionPipeline refuses this: .*divisible by 8"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "refuses this: .*has to be in"),
        ({"num_inference_steps": 1001}, "StableDiffusionPipeline refuses this: .*cannot be larger than"),
        ({"timesteps": torch.tensor([900, 5])}, "refuses this: .*does not support custom timestep schedules"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents has 2 entries; one a picture is right, 1 in all"),
        ({"experts": [-2]}, "experts is -2; a whole number from -1"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 entries"),
    ],
)
def test_bad_requests_are_refused(pipe: RoutedPipeline, given: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        pipe("a red star", **given)
    assert one_sentence(caught.value)


def test_an_expert_that_draws_is_not_put_away_for_others(finished) -> None:
    pipe = aptp.load(finished.out, device="cpu", memory_limit=0)
    reads: list[int] = []
    read = pipe._experts._read
    pipe._experts._read = lambda index, dtype: (reads.append(index), read(index, dtype))[1]

    def ask(base: object, step: int, time: object, tensors: dict) -> dict:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(pipe.expert, (1, 2, 0)))
        return tensors

    pipe("a red star", experts=[0], callback_on_step_end=ask, **DRAWING)
    assert reads.count(0) == 1


@pytest.mark.parametrize("name", ["timesteps", "sigmas"])
def test_a_schedule_is_the_whole_call_s(pipe: RoutedPipeline, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = EulerDiscreteScheduler.from_config(pipe.base.scheduler.config)
    monkeypatch.setattr(pipe.base, "scheduler", scheduler)
    values = {"timesteps": [900, 400, 5], "sigmas": [9.0, 2.0, 0.5]}[name]
    settings = {"seed": 3, "output_type": "np", "num_inference_steps": 25}
    steps: list[float] = []

    def see(base: object, step: int, time: torch.Tensor, tensors: dict) -> dict:
        steps.append(float(time))
        return tensors

    drawn = pipe(
        ["a", "b", "c"], experts=[0, 1, 0], **{name: torch.tensor(values)}, callback_on_step_end=see, **settings
    )
    assert steps == 2 * scheduler.timesteps.tolist()
    assert steps == 2 * values or name == "sigmas"
    listed = pipe(["a", "b", "c"], experts=[0, 1, 0], **{name: values}, **settings)
    assert np.array_equal(drawn.images, listed.images)
    (own,) = pipe.base("b", generator=torch.Generator().manual_seed(3), output_type="np", **{name: values}).images[:1]
    (dense,) = pipe("b", dense=True, **{name: torch.tensor(values)}, **settings).images
    assert np.abs(own - dense).max() <= 1e-4


def test_an_error_of_a_callback_stays_what_it_is(pipe: RoutedPipeline) -> None:
    def fail(*args: object) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        pipe("a red star", callback_on_step_end=fail, **DRAWING)
    assert not isinstance(caught.value, RequestError)


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


def test_experts_share_all_but_the_denoiser(pipe: RoutedPipeline) -> None:
    seen: dict[int, set[tuple[int, ...]]] = {}

    def see(base, step: int, time, tensors: dict) -> dict:
        others = tuple(id(part) for name, part in base.components.items() if name != "unet")
        seen.setdefault(id(base.unet), set()).add(others)
        return tensors

    pipe(["a", "b", "c", "d"], experts=[0, 1, 2, -1], callback_on_step_end=see, **DRAWING)
    assert len(seen) == 4
    assert len(set.union(*seen.values())) == 1


def test_threads_may_share_a_pipeline(pipe: RoutedPipeline) -> None:
    asked, experts = ["a red star", "the word STOP", "a blue dot"], [0, 1, 2]
    expected = pipe(asked, experts=experts, output_type="np", **DRAWING).images

    def draw(number: int) -> np.ndarray:
        order = experts[number % 3 :] + experts[: number % 3]
        drawn = pipe([asked[i] for i in order], experts=order, output_type="np", batch_size=1, **DRAWING)
        assert [route.prompt for route in pipe.route(asked)] == asked
        return drawn.images[np.argsort(order)]

    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(draw, range(8)):
            assert np.abs(images - expected).max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_draws_nearly_the_same_and_routes_the_same(
    pipe: RoutedPipeline, finished, prompts: list[str], dtype: torch.dtype
) -> None:
    half = aptp.load(finished.out, device="cpu", dtype=dtype)
    assert (half.device.type, half.dtype, half.expert(0).dtype) == ("cpu", dtype, dtype)
    assert half.route(prompts[:50]) == pipe.route(prompts[:50])
    asked = {"prompts": ["a red star", "the word STOP"], "experts": [0, -1], "output_type": "np"} | DRAWING
    expected, images = pipe(**asked).images, half(**asked).images
    assert 0 < np.abs(images - expected).max() < 0.1
    assert half.to(torch.float32).dtype == half.expert(0).dtype == half.expert(1).dtype == torch.float32


def test_a_vae_that_ran_out_of_memory_in_float32_is_what_it_was(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    half = aptp.load(finished.out, device="cpu", dtype=torch.bfloat16)

    def decode(vae: nn.Module, *_: object, **__: object) -> None:
        vae.to(torch.float32)
        raise torch.OutOfMemoryError("too many pictures")

    with monkeypatch.context() as patch:
        patch.setattr(type(half.base.vae), "decode", decode)
        with pytest.raises(torch.OutOfMemoryError):
            half("a red star", num_inference_steps=1)
    assert half.base.vae.dtype == torch.bfloat16
    assert len(half("a red star", num_inference_steps=1).images) == 1


def test_experts_are_read_when_needed_or_all_at_once(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Bundle.expert
    monkeypatch.setattr(Bundle, "expert", lambda self, index, *args: (reads.append(index), read(self, index, *args))[1])
    lazy = aptp.load(finished.out, device="cpu")
    assert reads == []
    lazy("a red star", experts=[1], num_inference_steps=1)
    assert reads == [1]
    aptp.load(finished.out, device="cpu", lazy=False)
    assert reads == [1, 0, 1, 2]


def test_a_memory_limit_changes_no_picture(pipe: RoutedPipeline, finished) -> None:
    asked = {"prompts": ["a red star"] * 4, "experts": [0, 1, 2, -1], "output_type": "np"} | DRAWING
    small = aptp.load(finished.out, device="cpu", memory_limit=size_of(pipe.dense) + size_of(pipe.expert(0)))
    first, again = small(**asked).images, small(**asked).images
    expected = pipe(**asked).images
    assert np.abs(first - expected).max() <= 1e-5
    assert np.array_equal(first, again)


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


def test_an_expert_that_is_there_and_fits_nothing_is_refused_when_it_is_needed(copied: Path) -> None:
    shutil.copy(copied / "experts/00/expert.safetensors", copied / "experts/01/expert.safetensors")
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
