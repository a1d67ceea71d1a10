"""The application on a Ray cluster of two nodes on this machine: every expert draws in processes of its own."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

import aptp
from aptp.core.errors import RequestError
from aptp.routing import DENSE
from aptp.serving.access import bind
from aptp.serving.engine import Manner

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

pytestmark = pytest.mark.slow
IMAGES = "/v1/images/generations"
PROMPTS = ["a red star", "the word STOP", "a blue dot left of a green ring", "stripes", "a plain ground", "the word NO"]


@pytest.fixture(scope="module")
def url(finished, _ray_cluster) -> Iterator[str]:
    from aptp.serving.replicas import Settings, application

    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    _ray_cluster.two_nodes()
    ray.init(logging_level="WARNING", log_to_driver=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(Settings(run=str(finished.out), batch=4, cpus=0.25, timeout=300)), name="aptp")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_every_picture_is_the_pipelines_own_and_drawn_by_its_expert(url: str, finished) -> None:
    pipe = aptp.load(finished.out, device="cpu")

    def ask(number: int) -> Any:
        body = {"prompt": PROMPTS[number % 6], "seed": number, "steps": 2, "guidance": 3.0}
        return httpx2.post(url + IMAGES, json=body, timeout=300)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(12)))
    for number, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        (picture,) = answer.json()["data"]
        own = pipe(PROMPTS[number % 6], seed=number, num_inference_steps=2, guidance_scale=3.0)
        assert (picture["expert"], picture["cost"]) == (own.experts[0], own.costs[0])
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["b64_json"])))).astype(int)
        assert np.abs(drawn - np.asarray(own.images[0]).astype(int)).max() <= 1
    experts = [f"expert-{index:02d}" for index in range(len(pipe.bundle.fractions))]
    status = serve.status().applications["aptp"]
    running = {name: dict(deployment.replica_states) for name, deployment in status.deployments.items()}
    assert running == {name: {"RUNNING": 1} for name in [*experts, "front"]}


def test_what_a_replica_refuses_is_refused_in_its_own_words() -> None:
    from ray.exceptions import RayTaskError

    from aptp.serving.replicas import Distributed

    async def remote(*_: object) -> None:
        raise RayTaskError("draw", "a traceback", RequestError("no pipeline draws this.")).as_instanceof_cause()

    front = Distributed.__new__(Distributed)
    front.hands = [SimpleNamespace(draw=SimpleNamespace(remote=remote))] * 2
    for expert in (0, 1, DENSE):
        with pytest.raises(RequestError, match=r"^no pipeline draws this\.$"):
            asyncio.run(front.draw(Manner(expert, 1, None, False), []))


def test_replicas_have_the_commit_that_the_hub_had(finished, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aptp.serving.replicas import Settings, application

    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / commit).symlink_to(finished.out)
    monkeypatch.setattr("aptp.serving.replicas.find_bundle", lambda name: tmp_path / "snapshots" / commit)
    front = application(Settings(run="someone/bundle@main", dtype="bfloat16"))._bound_deployment
    settings, name, hands = front.init_args
    assert (settings.run, name) == (f"someone/bundle@{commit}", "someone/bundle@main")
    told = [hand._bound_deployment.init_args for hand in hands]
    assert told == [(settings.run, index, "bfloat16") for index in range(3)]


def test_it_is_the_same_application(url: str) -> None:
    assert httpx2.get(f"{url}/health/ready").json() == {"ready": True}
    assert "<title>aptp</title>" in httpx2.get(url).text
    refused = httpx2.post(url + IMAGES, json={"prompt": ""})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
    assert httpx2.get(url, headers={"Host": "evil.example"}).status_code == 403
    assert 'aptp_requests_total{status="200"} 12.0' in httpx2.get(f"{url}/metrics").text
