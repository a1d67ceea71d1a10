"""A load on `aptp serve`: everyone gets their own picture, bad requests get a sentence, and nothing is left behind.

    python benchmarks/serving.py RUN [--requests 200] [--clients 4] [--rounds 3] [--steps 4] [--batch 8]

Starts a server on loopback and, in each round, as many client processes as asked, which send all their requests at
once: nine of ten good, the others malformed, and beside them one that leaves before its picture is drawn. Every picture
is compared with the pipeline's own. Prints figures as JSON; stops with an AssertionError where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = "/v1/images/generations"
COLOURS, SHAPES = ("red", "green", "blue", "yellow", "white"), ("star", "ring", "square", "dot", "cross")
PROMPTS = [f"a {c} {s}" for c in COLOURS for s in SHAPES] + [f"the word {w}" for w in ("STOP", "NO", "YES", "GO")]
BAD: list[tuple[str, str, int]] = [
    ("application/json", '{"prompt": "a st', 400),
    ("application/json", "[]", 400),
    ("application/json", '{"prompt": ""}', 400),
    ("application/json", '{"prompt": "a star", "n": 1000}', 400),
    ("application/json", '{"prompt": "a star", "size": "4096x4096"}', 400),
    ("application/json", '{"promt": "a star"}', 400),
    ("application/json", '{"prompt": "a star", "model": "other"}', 404),
    ("application/json", json.dumps({"prompt": "x" * 200_000}), 413),
    ("text/plain", '{"prompt": "a star"}', 415),
]
"""Content type, body, and the status that it should get."""


def calls(requests: int, steps: int) -> list[dict[str, Any]]:
    """What is sent in a round: nine good requests, then a bad one, and so on."""
    planned = []
    for number in range(requests):
        if number % 10 == 9:
            kind, body, status = BAD[number // 10 % len(BAD)]
            planned.append({"type": kind, "body": body, "status": status})
        else:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "steps": steps, "guidance": 3.0}
            planned.append({"type": "application/json", "body": json.dumps(body), "status": 200})
    return planned


async def send(url: str, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to requests that are sent all at once, and the seconds each took."""
    import httpx2

    async def one(client: httpx2.AsyncClient, call: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        answer = await client.post(IMAGES, content=call["body"], headers={"Content-Type": call["type"]})
        return {"status": answer.status_code, "answer": answer.json(), "seconds": time.perf_counter() - begun}

    limits = httpx2.Limits(max_connections=len(planned))
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        return await asyncio.gather(*(one(client, call) for call in planned))


def leave(url: str) -> None:
    """Ask for what takes long to draw, and close the connection once it is taken."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", url).groups()
    body = json.dumps({"prompt": "a picture for nobody", "n": 4, "steps": 100}).encode()
    fields = {"Host": host, "Content-Type": "application/json", "Content-Length": len(body)}
    head = "\r\n".join([f"POST {IMAGES} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""])
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + 60
        while not figures(url)["aptp_taken_pictures"]:
            assert time.monotonic() < deadline, "nothing is taken"
            time.sleep(0.01)


def load(url: str, planned: list[dict[str, Any]], clients: int) -> list[dict[str, Any]]:
    """The answers to a round's requests, sent by so many processes."""
    command = [sys.executable, __file__, "--send", url]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for number, worker in enumerate(workers):
        assert worker.stdin
        worker.stdin.write(json.dumps(planned[number::clients]))
        worker.stdin.close()
    leave(url)
    answers: list[Any] = [None] * len(planned)
    for number, worker in enumerate(workers):
        assert worker.stdout
        answers[number::clients] = json.loads(worker.stdout.read())
        assert worker.wait() == 0
    return answers


@contextmanager
def server(run: Path, *flags: str) -> Iterator[str]:
    """The address of `aptp serve`, in a process of its own that is stopped gracefully at the end."""
    command = [sys.executable, "-m", "aptp", "serve", str(run), "--port", "0", "--device", "cpu", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        line = process.stderr.readline()
        found = re.search(r"at (http://\S+)", line)
        assert found, line + process.stderr.read()
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()


def figures(url: str) -> dict[str, float]:
    """What `/metrics` says."""
    from urllib.request import urlopen

    text = urlopen(f"{url}/metrics").read().decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def check(planned: list[dict[str, Any]], answers: list[dict[str, Any]], own: list[Any]) -> int:
    """That each request got its status and each good one its own picture; the largest difference, in levels of 255."""
    import numpy as np
    from PIL import Image

    worst, pictures = 0, iter(own)
    for call, got in zip(planned, answers, strict=True):
        assert got["status"] == call["status"], (call["body"][:100], got)
        if got["status"] != 200:
            message = got["answer"]["error"]["message"]
            assert re.fullmatch(r"[^\n]+[.?]", message), message
            continue
        (picture,) = got["answer"]["data"]
        assert picture["seed"] == json.loads(call["body"])["seed"]
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["b64_json"])))).astype(int)
        worst = max(worst, int(np.abs(drawn - np.asarray(next(pictures)).astype(int)).max()))
    assert worst <= 1, "a picture is not the pipeline's own"
    return worst


def own_pictures(run: Path, planned: list[dict[str, Any]]) -> list[Any]:
    """What the pipeline draws for the good requests."""
    import aptp

    good = [json.loads(call["body"]) for call in planned if call["status"] == 200]
    drawn = aptp.load(run, device="cpu")(
        [body["prompt"] for body in good],
        seed=[body["seed"] for body in good],
        num_inference_steps=good[0]["steps"],
        guidance_scale=good[0]["guidance"],
    )
    return drawn.images


def measure(run: Path, *, requests: int, clients: int, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """The figures of some rounds on one server."""
    planned = calls(requests, steps)
    good = [number for number, call in enumerate(planned) if call["status"] == 200]
    own = own_pictures(run, planned)
    told: list[dict[str, float]] = []
    with server(run, "--queue", str(requests + 4), "--batch", str(batch), "--timeout", "600") as url:
        for number in range(rounds):
            begun, before = time.perf_counter(), figures(url)
            answers = load(url, planned, clients)
            wall = time.perf_counter() - begun
            worst = check(planned, answers, own)
            after = figures(url)
            since = Counter(after)
            since.subtract(before)
            seconds = [answers[place]["seconds"] for place in good]
            assert since['aptp_requests_total{status="200"}'] == len(good), since
            assert since['aptp_requests_total{status="499"}'] == 1, "the client who left was noticed"
            assert sum(since[name] for name in since if name.startswith("aptp_requests_total")) == requests + 1
            assert after["aptp_taken_pictures"] == after["aptp_waiting_pictures"] == 0
            told.append(
                {
                    "round": number + 1,
                    "pictures_per_second": len(good) / wall,
                    "latency_median": statistics.median(seconds),
                    "latency_95": statistics.quantiles(seconds, n=20)[-1],
                    "mean_batch": since["aptp_batch_pictures_sum"] / since["aptp_batch_pictures_count"],
                    "drawn_for_the_one_who_left": since["aptp_batch_pictures_sum"] - len(good),
                    "worst_difference": worst,
                    "resident_mb": after["process_resident_memory_bytes"] / 1e6,
                    "open_files": after["process_open_fds"],
                }
            )
    return {"load": os.getloadavg()[0], "requests": requests, "steps": steps, "batch": batch, "rounds": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    for name, default in {"requests": 200, "clients": 4, "rounds": 3, "steps": 4, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--send", metavar="URL", help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    if url := given.pop("send"):
        json.dump(asyncio.run(send(url, json.load(sys.stdin))), sys.stdout)
    else:
        print(json.dumps(measure(**given), indent=1))


if __name__ == "__main__":
    main()
