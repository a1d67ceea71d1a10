"""Two processes are one: the same losses, routes and experts; when one dies the other ends, and both go on later."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aptp.config import RunConfig
from aptp.core import distributed
from aptp.core.errors import RequestError
from aptp.core.record import Record
from aptp.harness.processes import alone, check_shares, join

LAUNCH = "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 -m aptp run"
PATIENCE = 300
TOLERANCE = 1e-4
"""Of a figure, relatively: two processes add up the same numbers in another order. Logs have six decimals."""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def config(finished) -> RunConfig:
    """The finished run's, but for what comes after recovery, and for the device, which has to be named."""
    less = finished.config.evaluate.model_copy(update={"prompts": 6, "gallery": 0, "batch": 1})
    return finished.config.model_copy(update={"device": "cpu", "compare": [], "evaluate": less})


def environment(**more: object) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more}
    return os.environ | {name: str(value) for name, value in given.items()}


@pytest.fixture(scope="module")
def interrupted(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes in the midst of the search, of which one was killed."""
    out = tmp_path_factory.mktemp("two") / "run"
    file = out.parent / "config.yaml"
    file.write_text(config.to_yaml())
    run = [sys.executable, "-m", "aptp", "run", "--config", str(file), "--out", str(out)]
    places = environment(WORLD_SIZE=2)
    main, other = (subprocess.Popen(run, env=places | {"RANK": r, "LOCAL_RANK": r}) for r in "01")
    deadline = time.monotonic() + PATIENCE
    try:
        while len(lines(out / "logs/search.jsonl")) < 6:
            assert main.poll() is None
            assert other.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        other.send_signal(signal.SIGKILL)
        assert main.wait(PATIENCE) == 1
    finally:
        for child in (main, other):
            child.kill()
            child.wait()
    return out


@pytest.fixture(scope="module")
def on_two(config: RunConfig, interrupted: Path) -> Path:
    """That run, gone on with and done on two processes."""
    run = [*LAUNCH.split(), "--config", str(interrupted.parent / "config.yaml"), "--out", str(interrupted), "--resume"]
    done = subprocess.run(
        [sys.executable, *run], env=environment(), timeout=PATIENCE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == 1, "one process speaks"
    return interrupted


@pytest.mark.slow
def test_when_one_process_dies_the_run_fails_and_says_so(interrupted: Path) -> None:
    record = Record.load(interrupted / "record.json")
    assert (record.status, record.hardware["processes"]) == ("failed", 2)
    assert not (interrupted / "router").exists()


@pytest.mark.slow
def test_two_processes_learn_as_one(finished, on_two: Path) -> None:
    for stage in ("search", "recover"):
        one, two = lines(finished.out / f"logs/{stage}.jsonl"), lines(on_two / f"logs/{stage}.jsonl")
        assert len(one) == len(two)
        for step, other in zip(one, two, strict=True):
            assert other == pytest.approx(step, rel=TOLERANCE, abs=2e-6), (stage, step["step"])


@pytest.mark.slow
def test_two_processes_route_as_one(finished, on_two: Path) -> None:
    record = Record.load(on_two / "record.json")
    assert record.status == "done"
    assert [(e.kept, e.training_load) for e in record.experts] == [
        (e.kept, e.training_load) for e in finished.record.experts
    ]
    for name in ("load", "kinds", "mean_cost"):
        assert record.routing[name] == finished.record.routing[name], name


@pytest.mark.slow
def test_two_processes_draw_what_one_does(finished, on_two: Path) -> None:
    for folder in ("dense", "contrastive+sinkhorn"):
        for place in range(6):
            one, two = (
                np.asarray(Image.open(out / f"samples/{folder}/{place:03d}.png"), dtype=float)
                for out in (finished.out, on_two)
            )
            assert abs(one - two).mean() < 2


def test_batches_have_equal_shares(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    check_shares(config)
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    with pytest.raises(RequestError, match=r"search\.batch 8 has no equal shares for 3 processes .* multiple of 3\."):
        check_shares(config)


def test_a_launcher_of_another_precision_is_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(RequestError, match="the launcher asks for precision 'bf16', but the run's is 'fp32'"):
        join(config)
    join(config.model_copy(update={"precision": "bf16"}))


def test_a_launcher_that_started_one_process_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert alone() is None
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert "started one" in alone()
