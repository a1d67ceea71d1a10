"""The endpoints, around an engine that draws nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from aptp.routing import DENSE, Route
from aptp.serving.app import create_app
from aptp.serving.engine import Manner, Painting, Sketch
from aptp.serving.limits import Limits
from aptp.serving.service import Service

IMAGES = "/v1/images/generations"
KEY = "correct-horse-battery"
Serving = Callable[..., TestClient]


def ask(client: TestClient, prompt: str = "a red star", **parameters: Any) -> Any:
    return client.post(IMAGES, json={"prompt": prompt} | parameters)


def refused(answer: Any, status: int) -> dict[str, Any]:
    """The error of a refusal, which is one sentence in OpenAI's shape."""
    assert answer.status_code == status
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "?"))
    assert "\n" not in error["message"]
    return error


def figure(client: TestClient, name: str, **labels: str) -> float:
    """A figure of /metrics; 0 where nothing was counted."""
    text = client.get("/metrics").text
    label = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.findall(f"^{re.escape(name + (f'{{{label}}}' if label else ''))} (.+)$", text, re.MULTILINE)
    return float(found[0]) if found else 0.0


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_answer_has_the_shape_that_clients_read(serving: Serving) -> None:
    with serving() as client:
        answer = ask(client, "a red star", n=2, seed=7, negative_prompt="blur").json()
    assert answer["created"] == pytest.approx(time.time(), abs=60)
    told = {key: answer[key] for key in ("model", "revision", "size", "output_format")}
    assert told == {"model": "demo", "revision": "abc123", "size": "64x64", "output_format": "png"}
    first, second = answer["data"]
    assert [first["seed"], second["seed"]] == [7, 8]
    assert first["expert"] == 0
    assert first["cost"] == 0.5
    assert json.loads(base64.b64decode(first["b64_json"])) == [0, "a red star", "blur", 7]
    assert json.loads(base64.b64decode(second["b64_json"])) == [0, "a red star", "blur", 8]


def test_requests_at_once_are_drawn_together_by_expert_and_manner(serving: Serving, pen) -> None:
    pen.held = True
    prompts = ["aa", "bbb", "cc", "ddd", "ee"]
    with serving() as client, ThreadPoolExecutor(8) as threads:
        held = threads.submit(ask, client, "held!", seed=0)
        until(lambda: figure(client, "aptp_taken_pictures") == 1 and figure(client, "aptp_waiting_pictures") == 0)
        calls = [threads.submit(ask, client, prompt, seed=3, steps=9 if prompt == "ee" else 2) for prompt in prompts]
        until(lambda: figure(client, "aptp_waiting_pictures") == 5)
        pen.held = False
        answers = [call.result().json()["data"][0] for call in calls]
        assert held.result().status_code == 200
        assert [json.loads(base64.b64decode(answer["b64_json"]))[1] for answer in answers] == prompts
        batches = {(m.expert, m.steps, frozenset(s.prompt for s in sketches)) for m, sketches in pen.batches}
        wanted = {(0, 2, frozenset({"aa", "cc"})), (1, 2, frozenset({"bbb", "ddd"})), (0, 9, frozenset({"ee"}))}
        assert batches == wanted | {(1, 25, frozenset({"held!"}))}
        assert figure(client, "aptp_pictures_total", expert="0") == 3
        assert figure(client, "aptp_cost_total") == 3 * 0.5 + 3 * 0.75
        assert figure(client, "aptp_batch_pictures_count") == 4
        assert figure(client, "aptp_requests_total", status="200") == 6
        assert figure(client, "aptp_taken_pictures") == 0


def test_a_full_queue_says_when_to_come_back(serving: Serving, pen) -> None:
    pen.held = True
    with serving() as client, ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(ask, client, n=3) for _ in range(2)]
        until(lambda: figure(client, "aptp_taken_pictures") == 6)
        answer = ask(client)
        error = refused(answer, 429)
        assert error["type"] == "rate_limit_error"
        assert int(answer.headers["Retry-After"]) >= 1
        pen.held = False
        assert [call.result().status_code for call in calls] == [200, 200]
        assert ask(client).status_code == 200


@pytest.mark.parametrize("flagged", [None, False, True])
def test_an_answer_says_what_the_safety_checker_said(serving: Serving, pen, flagged: bool | None) -> None:
    pen.flagged = flagged
    with serving() as client:
        assert [picture["nsfw_content_detected"] for picture in ask(client, n=2).json()["data"]] == [flagged] * 2
        assert figure(client, "aptp_flagged_pictures_total") == 2 * bool(flagged)


def test_the_dense_model_costs_what_it_costs(serving: Serving, pen, monkeypatch: pytest.MonkeyPatch) -> None:
    async def route(prompt: str) -> Route:
        return Route(prompt, DENSE, 1.0, 0.1)

    monkeypatch.setattr(pen, "route", route)
    with serving() as client:
        (picture,) = ask(client).json()["data"]
        assert (picture["expert"], picture["cost"]) == (DENSE, 1.0)
        assert figure(client, "aptp_cost_total") == 1.0


def test_what_is_not_drawn_in_time_is_given_up(pen) -> None:
    pen.held = True
    service = Service(pen, Limits(wait=0, timeout=0.3))
    with TestClient(create_app(service), "http://localhost") as client:
        assert refused(ask(client), 504)["message"] == "no picture was drawn within 0.3 s."
        refused(ask(client, "another"), 504)
        assert figure(client, "aptp_taken_pictures") == figure(client, "aptp_waiting_pictures") == 0
        pen.held = False
        until(lambda: len(pen.batches) == 1)
        assert ask(client, "a third").status_code == 200
    assert [sketch.prompt for _, sketches in pen.batches for sketch in sketches] == ["a red star", "a third"]


def test_a_server_that_stops_refuses_what_is_new(serving: Serving, service: Service, pen) -> None:
    with serving() as client:
        assert client.get("/health/ready").json() == {"ready": True}
        service.closing = True
        refused(ask(client), 503)
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").json() == {"live": True}
    assert pen.closed


def test_a_failure_is_told_without_its_inside(serving: Serving, pen, caplog: pytest.LogCaptureFixture) -> None:
    pen.error = RuntimeError("no weights in /home/someone/secret")
    with serving() as client:
        answer = ask(client)
        error = refused(answer, 500)
        assert error["type"] == "server_error"
        assert "secret" not in answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        pen.error = None
        assert ask(client).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", IMAGES, 405), ("GET", "/v1/models/other", 404), ("GET", "/docs", 404)],
)
def test_what_is_not_there_is_refused(serving: Serving, method: str, path: str, status: int) -> None:
    with serving() as client:
        refused(client.request(method, path), status)


def test_bodies_are_bounded_and_must_be_json(serving: Serving, service: Service) -> None:
    with serving() as client:
        assert refused(ask(client, "x" * service.limits.body), 413)["code"] == "too_large"
        pieces = (b"x" * 1000 for _ in range(100))
        refused(client.post(IMAGES, content=pieces, headers={"Content-Type": "application/json"}), 413)
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            refused(client.post(IMAGES, content=b'{"prompt": "x"}', headers={"Content-Type": kind}), 415)
        assert refused(ask(client, ""), 400)["param"] == "prompt"
        assert figure(client, "aptp_requests_total", status="413") == 2


def test_the_model_is_listed(serving: Serving) -> None:
    with serving() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["object"], model["costs"]) == ("demo", "model", [0.5, 0.75])
        assert client.get("/v1/models/demo").json() == model
        body = client.get("/openapi.json").json()["paths"][IMAGES]["post"]["requestBody"]
        assert "negative_prompt" in body["content"]["application/json"]["schema"]["properties"]


def test_every_answer_has_its_headers(serving: Serving) -> None:
    with serving() as client:
        for answer in (ask(client), client.get("/"), client.get("/nothing"), ask(client, ""), client.get("/metrics")):
            assert answer.headers["X-Aptp-Revision"] == "abc123"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert "server" not in answer.headers


def test_a_key_is_asked_for_everywhere_but_at_the_page_and_probes(serving: Serving) -> None:
    paths = ("/v1/models", "/metrics", "/openapi.json", "/nothing")
    with serving(key=KEY) as client:
        client.headers["Host"] = "pictures.example"
        assert [client.get(path).status_code for path in ("/", "/health/live", "/health/ready")] == [200] * 3
        assert [client.head(path).status_code for path in ("/health/live", "/health/ready")] == [200] * 2
        for value in (None, "Bearer", f"Bearer {KEY}x", "Bearer ü", f"Basic {KEY}", KEY):
            headers = {} if value is None else {"Authorization": value.encode()}
            for path in paths:
                answer = client.get(path, headers=headers)
                assert refused(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert KEY not in answer.text
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert [client.get(path).status_code for path in paths] == [200, 200, 200, 404]
        assert ask(client).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "x@evil.example", "[x", ""]
)
def test_without_a_key_only_this_machines_names_are_answered(serving: Serving, host: str) -> None:
    with serving() as client:
        for path in ("/", "/health/live", "/v1/models"):
            refused(client.get(path, headers={"Host": host}), 403)
        for name in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST"):
            assert client.get("/v1/models", headers={"Host": name}).status_code == 200


def test_the_page_runs_what_stands_in_it_and_nothing_else(serving: Serving) -> None:
    with serving() as client:
        answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert re.findall(r"\b(?:src|href)=\"(?!data:)|https?://(?!www\.w3\.org)| style=| on\w+=", answer.text) == []


def called(service: Service, receive: Callable[[], Awaitable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the application sends for one request whose body and end come from `receive`."""
    scope = {
        "type": "http", "method": "POST", "path": IMAGES, "raw_path": IMAGES.encode(), "query_string": b"",
        "scheme": "http", "http_version": "1.1", "root_path": "", "server": ("localhost", 80),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def both() -> None:
        work = asyncio.create_task(service.run())
        try:
            await asyncio.wait_for(create_app(service)(scope, receive, send), 5)
            await asyncio.sleep(0.1)
        finally:
            work.cancel()

    asyncio.run(both())
    return sent


def test_what_is_not_begun_for_a_client_who_left_is_dropped(pen) -> None:
    service = Service(pen, Limits(batch=4, wait=0.1))
    bodies = [b'{"prompt": "a red ', b'star", "n": 2}']

    async def receive() -> dict[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(0), "more_body": bool(bodies)}
        await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    called(service, receive)
    assert service.metrics.registry.get_sample_value("aptp_requests_total", {"status": "499"}) == 1
    assert service.taken == 0
    assert pen.batches == []


def test_what_the_pipeline_refuses_is_told_to_who_asked_for_it_alone(serving: Serving, pen) -> None:
    pen.refused = "a rhyme"
    pen.held = True
    prompts = ["a poem!", "a rhyme", "a verse"]
    with serving() as client, ThreadPoolExecutor(8) as threads:
        held = threads.submit(ask, client, "held")
        until(lambda: figure(client, "aptp_taken_pictures") == 1 and figure(client, "aptp_waiting_pictures") == 0)
        calls = [threads.submit(ask, client, prompt, seed=0) for prompt in prompts]
        until(lambda: figure(client, "aptp_waiting_pictures") == 3)
        pen.held = False
        answers = [call.result() for call in calls]
        assert held.result().status_code == 200
    error = refused(answers[1], 400)
    assert (error["code"], error["message"]) == ("invalid_value", "no pipeline draws 'a rhyme'; ask for another.")
    assert [answers[place].status_code for place in (0, 2)] == [200, 200]


@pytest.mark.parametrize("body", [[], [b'{"prompt": "a red ']])
def test_a_client_who_leaves_within_its_body_is_no_failure(pen, body: list[bytes]) -> None:
    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": True}
        return {"type": "http.disconnect"}

    service = Service(pen, Limits())
    assert called(service, receive)[0]["status"] == 499
    assert service.metrics.registry.get_sample_value("aptp_requests_total", {"status": "499"}) == 1


def test_where_a_picture_fails_the_others_of_its_request_are_dropped(pen, monkeypatch: pytest.MonkeyPatch) -> None:
    async def draw(manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        pen.batches.append((manner, list(sketches)))
        await asyncio.sleep(0.02)
        raise RuntimeError("no memory")

    monkeypatch.setattr(pen, "draw", draw)
    service = Service(pen, Limits(batch=1, wait=0))
    with TestClient(create_app(service), "http://localhost", raise_server_exceptions=False) as client:
        refused(ask(client, n=4), 500)
        until(lambda: figure(client, "aptp_waiting_pictures") == 0)
    assert len(pen.batches) <= 2


def test_a_body_that_does_not_come_is_not_waited_for(pen) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": b" ", "more_body": True}

    start, body = called(Service(pen, Limits(reading=0.3)), receive)
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "timeout"
