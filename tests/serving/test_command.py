"""`aptp serve`: what it refuses before it loads anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from types import SimpleNamespace

import httpx2
import pytest
import torch
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from typer.testing import CliRunner

from aptp.cli import app
from aptp.serving.limits import Limits
from aptp.serving.service import Service

GOOD = "correct-horse-battery"


def refusal(*arguments: str, env: dict[str, str] | None = None) -> str:
    done = CliRunner(env={"APTP_API_KEY": None} | (env or {})).invoke(app, ["serve", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("aptp: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0", "--port", "0"], "--host 0.0.0.0 lets others in, so it needs an API key"),
        (["--steps", "30", "--max-steps", "20"], "--steps 30 is more than --max-steps 20"),
        (["--guidance", "31"], "'--guidance'"),
        (["--max-count", "9", "--queue", "8"], "--max-count 9 is more than --queue 8"),
        (["--port", "70000"], "'--port'"),
        (["--batch", "0"], "'--batch'"),
        (["--timeout", "inf"], "'--timeout'"),
        (["--wait", "nan"], "'--wait'"),
        (["--fallback-margin", "nan"], "'--fallback-margin'"),
        (["--api-key-file", "nowhere"], "--api-key-file 'nowhere' cannot be read"),
        (["--dtype", "int8"], "'--dtype'"),
        (["--memory-limit", "-1"], "'--memory-limit'"),
        (["--port", "0"], "is no run with a router"),
    ],
)
def test_wrong_requests_are_refused(flags: Sequence[str], words: str, tmp_path: Path) -> None:
    assert words in refusal(str(tmp_path), *flags)


@pytest.mark.parametrize(
    "key", ["", "short", "with a space in the middle", "ключ-длинный-достаточно", "two\nlines-of-a-file"]
)
def test_a_bad_key_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key)
    for answer in (refusal("x", "--api-key-file", str(tmp_path / "key")), refusal("x", env={"APTP_API_KEY": key})):
        assert "holds no good API key" in answer
        assert not key or key not in answer


def test_with_a_key_others_may_be_let_in(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(GOOD + "\n")
    answer = refusal(str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--api-key-file", str(tmp_path / "key"))
    assert "is no run with a router" in answer


def test_what_is_asked_for_is_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, limits and margin, and an address that others reach has its key asked for."""
    served: list[tuple[ASGIApp, Service]] = []
    pipe = SimpleNamespace(
        bundle=SimpleNamespace(folder=tmp_path, manifest=None, fractions=[0.5], budget=None),
        dense=None,
        base=SimpleNamespace(vae_scale_factor=8),
        monitor=None,
    )

    class Server:
        def __init__(self, app: ASGIApp, service: Service, say: object) -> None:
            served.append((app, service))

        def run(self, sockets: list[socket]) -> None:
            for one in sockets:
                one.close()

    loaded: list[dict[str, object]] = []
    monkeypatch.setattr(
        "aptp.pipeline.RoutedPipeline.from_pretrained", lambda run, **settings: (loaded.append(settings), pipe)[1]
    )
    monkeypatch.setattr("aptp.serving.engine.denoiser_of", lambda model: SimpleNamespace(sample_size=lambda model: 8))
    monkeypatch.setattr("aptp.serving.server.Server", Server)
    flags = {
        "batch": 3,
        "wait": 0.25,
        "queue": 7,
        "timeout": 9.0,
        "max_count": 2,
        "max_steps": 40,
        "max_prompt": 77,
        "steps": 11,
        "guidance": 4.5,
    }
    asked = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    asked += ["--host", "0.0.0.0", "--port", "0", "--fallback-margin", "0.125"]
    asked += ["--dtype", "bfloat16", "--memory-limit", "1.5", "--device", "cpu"]
    done = CliRunner(env={"APTP_API_KEY": GOOD}).invoke(app, ["serve", str(tmp_path), *asked])
    assert done.exit_code == 0, done.output
    ((application, service),) = served
    assert loaded == [{"device": "cpu", "dtype": torch.bfloat16, "lazy": True, "memory_limit": 1_500_000_000}]
    assert service.limits == Limits(**flags)
    assert service.engine.fallback_margin == 0.125
    with TestClient(application, "http://pictures.example") as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {GOOD}"}).status_code == 200


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aptp.core.extras.find_spec", lambda name: None if name == "uvicorn" else object())
    assert "aptp serve needs uvicorn, not installed; pip install 'aptp[serve]'." in refusal("x")


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["x", "--host", "0.0.0.0", "--port", "0"], 2)])
def test_help_and_refusals_import_nothing_heavy(arguments: list[str], status: int) -> None:
    program = (
        "import sys, atexit, aptp.cli\n"
        "atexit.register(lambda: print('HEAVY', *{'torch', 'fastapi', 'uvicorn'}.intersection(sys.modules)))\n"
        "aptp.cli.main()"
    )
    command = [sys.executable, "-c", program, "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]


STUCK = """
import os, sys, threading
from pathlib import Path
from types import SimpleNamespace

import aptp.cli, aptp.pipeline, aptp.serving.engine, aptp.serving.server
from aptp.routing import Route


class Stuck:
    bundle = SimpleNamespace(folder=Path(sys.argv[2]), manifest=None, fractions=[0.5], budget=None)
    dense = None
    base = SimpleNamespace(vae_scale_factor=8)
    monitor = None

    def route(self, prompt, **_):
        return [Route(prompt, 0, 0.5, 0.1)]

    def expert(self, index):
        pass

    def __call__(self, *_, **__):
        threading.Event().wait()


aptp.pipeline.RoutedPipeline.from_pretrained = lambda *_, **__: Stuck()
aptp.serving.engine.denoiser_of = lambda model: SimpleNamespace(sample_size=lambda model: 8)
aptp.serving.server.FLUSHING = float(os.environ["FLUSHING"])
aptp.cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "flushing"),
    [([signal.SIGTERM], 0.3), ([signal.SIGTERM] * 2, 0.3), ([signal.SIGINT] * 100, 60)],
    ids=["once", "twice", "over and over"],
)
def test_a_batch_that_never_ends_does_not_keep_the_server(
    signals: list[signal.Signals], flushing: float, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", STUCK, "serve", str(tmp_path), "--port", "0", "--wait", "0", "--timeout", "0.5"]
    env = os.environ | {"FLUSHING": str(flushing)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            url = server.stderr.readline().split()[-1]
            answer = httpx2.post(f"{url}/v1/images/generations", json={"prompt": "a star"}, timeout=20)
            assert answer.status_code == 504
            for one in signals:
                if server.poll() is None:
                    server.send_signal(one)
                    time.sleep(0.1)
            assert server.wait(10) == 1
            assert server.stderr.read() == (
                "aptp: the server stopped with a batch still under way, which is given up.\n"
            )
        finally:
            server.kill()
