"""What is served is what the pipeline draws."""

from __future__ import annotations

import asyncio
import io
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import aptp
from aptp.core.errors import RequestError
from aptp.core.manifest import Manifest
from aptp.pipeline import RoutedOutput, RoutedPipeline
from aptp.routing import DENSE
from aptp.serving.app import create_app
from aptp.serving.engine import LocalEngine, revision_of
from aptp.serving.limits import Limits
from aptp.serving.schema import Order
from aptp.serving.service import Drawn, Service

PROMPTS = ["a red star", "the word STOP", "a blue dot left of a green ring", "stripes", "a plain ground", "the word NO"]


@pytest.fixture(scope="module")
def pipe(finished) -> RoutedPipeline:
    return aptp.load(finished.out, device="cpu")


class Watched:
    """A pipeline that keeps its pictures before they are rounded to bytes."""

    def __init__(self, pipe: RoutedPipeline) -> None:
        self.pipe = pipe
        self.floats: dict[tuple[str, int], np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, prompts: list[str], *, seed: list[int], **options: Any) -> RoutedOutput:
        drawn = self.pipe(prompts, seed=seed, output_type="np", **options)
        self.floats |= dict(zip(zip(prompts, seed, strict=True), drawn.images, strict=True))
        return replace(drawn, images=self.pipe.base.image_processor.numpy_to_pil(drawn.images))


class Flagging(Watched):
    """A pipeline whose safety checker dislikes odd places."""

    def __call__(self, prompts: list[str], **options: Any) -> RoutedOutput:
        flags = [place % 2 == 1 for place in range(len(prompts))]
        return replace(super().__call__(prompts, **options), nsfw_content_detected=flags)


@pytest.fixture
def engine(pipe: RoutedPipeline) -> Iterator[LocalEngine]:
    engine = LocalEngine(Watched(pipe), "demo")
    yield engine
    engine.close()


def drawn_together(engine: LocalEngine, orders: list[Order]) -> list[Drawn]:
    service = Service(engine, Limits(batch=4, wait=0.1))

    async def script() -> list[Drawn]:
        work = asyncio.create_task(service.run())
        try:
            return await asyncio.gather(*map(service.draw, orders))
        finally:
            work.cancel()

    return asyncio.run(script())


def test_a_picture_is_the_one_of_its_prompt_and_seed_alone(pipe: RoutedPipeline, engine: LocalEngine) -> None:
    orders = [Order(text, "blur" if n % 3 == 0 else None, (n, n + 1), 2, 3.0) for n, text in enumerate(PROMPTS)]
    for order, drawn in zip(orders, drawn_together(engine, orders), strict=True):
        options = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": order.negative_prompt}
        assert drawn.route == pipe.route(order.prompt)[0]
        for seed, painting in zip(order.seeds, drawn.pictures, strict=True):
            alone = pipe(order.prompt, seed=seed, output_type="np", **options).images[0]
            assert np.abs(engine.pipe.floats[order.prompt, seed] - alone).max() <= 1e-4
            assert painting.flagged is None, "this pipeline has no safety checker"
            picture = Image.open(io.BytesIO(painting.png))
            assert (picture.format, f"{picture.width}x{picture.height}") == ("PNG", engine.size)
            assert np.abs(np.asarray(picture) / 255 - alone).max() <= 0.5 / 255 + 1e-4


def test_prompts_of_little_lead_go_to_the_dense_model_and_flags_come_along(
    pipe: RoutedPipeline,
) -> None:
    engine = LocalEngine(Flagging(pipe), "demo", fallback_margin=np.inf)
    try:
        (drawn,) = drawn_together(engine, [Order(PROMPTS[0], None, (7, 8), 2, 3.0)])
    finally:
        engine.close()
    assert (drawn.route.expert, drawn.route.cost) == (DENSE, 1.0)
    assert [painting.flagged for painting in drawn.pictures] == [False, True]
    picture = np.asarray(Image.open(io.BytesIO(drawn.pictures[0].png))) / 255
    dense = pipe(PROMPTS[0], dense=True, seed=7, num_inference_steps=2, guidance_scale=3.0, output_type="np").images[0]
    assert np.abs(picture - dense).max() <= 0.5 / 255 + 1e-4


def test_a_damaged_expert_fails_its_own_prompts_alone(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RoutedPipeline.expert

    def expert(self: RoutedPipeline, index: int) -> Any:
        if index == 1:
            raise RequestError("it is not what its manifest says.")
        return whole(self, index)

    monkeypatch.setattr(RoutedPipeline, "expert", expert)
    service = Service(engine, Limits(wait=0))

    async def script() -> list[Any]:
        work = asyncio.create_task(service.run())
        orders = [Order(text, None, (0,), 1, 1.0) for text in PROMPTS]
        try:
            return await asyncio.gather(*map(service.draw, orders), return_exceptions=True)
        finally:
            work.cancel()

    experts = [route.expert for route in engine.pipe.route(PROMPTS)]
    assert len(set(experts)) > 1
    for expert_of, answer in zip(experts, asyncio.run(script()), strict=True):
        assert isinstance(answer, RuntimeError if expert_of == 1 else Drawn)
    assert service.taken == 0


def test_what_a_pipeline_has_not_is_refused_to_those_who_ask_for_it(
    pipe: RoutedPipeline, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family without negative prompts, and a scheduler without so many steps."""

    class Without(type(pipe.base)):
        def __call__(self, prompt, num_inference_steps, guidance_scale, generator, output_type):
            return super().__call__(
                prompt,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generator,
                output_type=output_type,
            )

    monkeypatch.setattr(pipe.base, "__class__", Without)
    orders = [
        Order(PROMPTS[0], "blur", (0,), 1, 3.0),
        Order(PROMPTS[0], None, (0,), 1, 3.0),
        Order(PROMPTS[0], None, (0,), 1001, 3.0),
    ]
    service = Service(engine, Limits(wait=0.1))

    async def script() -> list[Any]:
        work = asyncio.create_task(service.run())
        try:
            return await asyncio.gather(*map(service.draw, orders), return_exceptions=True)
        finally:
            work.cancel()

    without, drawn, endless = asyncio.run(script())
    assert isinstance(drawn, Drawn)
    assert (without.status, endless.status) == (400, 400)
    assert "'negative_prompt'" in without.message
    assert "cannot be larger than" in endless.message


def test_no_prompt_is_logged(engine: LocalEngine) -> None:
    """diffusers warns of a prompt that is too long for its text encoder, and quotes it."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    loud = logging.getLogger("diffusers")
    verbosity = loud.level
    loud.addHandler(handler)
    loud.setLevel(logging.WARNING)
    try:
        engine.pipe(["secret " * 200], seed=[0], num_inference_steps=1)
        assert any("secret" in message for message in said)
        said.clear()
        drawn_together(engine, [Order("secret " * 200, "secret " * 200, (0,), 1, 3.0)])
        assert said == []
        assert loud.level == logging.WARNING
    finally:
        loud.removeHandler(handler)
        loud.setLevel(verbosity)


@pytest.mark.parametrize("held", ["_routing", "_drawing"])
def test_what_never_ends_is_told(pipe: RoutedPipeline, held: str) -> None:
    """Prompts are routed, and pictures drawn, in the pipeline's own locks: whoever holds one makes that hang."""
    engine = LocalEngine(pipe, "demo")
    service = Service(engine, Limits(wait=0, timeout=0.5))
    with TestClient(create_app(service), "http://localhost") as client, getattr(pipe, held):
        assert client.get("/health/live").status_code == 200
        assert client.post("/v1/images/generations", json={"prompt": PROMPTS[0]}).status_code == 504
        time.sleep(0.6)
        answer = client.get("/health/live")
        assert (answer.status_code, answer.json()) == (503, {"live": False})
    assert engine.is_idle(30)
    assert not engine.hangs(0)


def test_a_revision_tells_what_serves(pipe: RoutedPipeline, tmp_path: Path) -> None:
    revision = revision_of(pipe.bundle)
    folder = pipe.bundle.folder
    for part in ("router", "experts"):
        shutil.copytree(folder / part, tmp_path / part)
    assert revision_of(replace(pipe.bundle, folder=tmp_path)) == revision
    weights = tmp_path / "experts/00/expert.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert revision_of(replace(pipe.bundle, folder=tmp_path)) != revision
    manifest = Manifest(tmp_path, {"router/router.json": (1, "0")})
    bundle = replace(pipe.bundle, folder=tmp_path, manifest=manifest)
    assert revision_of(bundle) == manifest.revision
    (tmp_path / "calibration.json").write_text("{}")
    assert revision_of(bundle) != manifest.revision
