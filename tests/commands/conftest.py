"""The program in an empty folder, over stand-ins of what is behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.table import Table
from typer.testing import CliRunner, Result

import aptp
import aptp.bundle
import aptp.pipeline
import aptp.routing
from aptp.cli import app
from aptp.config import RunConfig
from aptp.core.errors import RequestError
from aptp.pipeline import Route, RoutedOutput
from aptp.routing import DENSE


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Runs the program with some arguments."""

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        environment = {"APTP_DEBUG": None, "COLUMNS": "200"}
        return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env=environment)

    return run


@pytest.fixture
def refusal() -> Callable[[Result], str]:
    """The one sentence of a refused request."""

    def sentence(result: Result) -> str:
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("aptp: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return sentence


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Puts a module of such members in place of `aptp.<name>`."""

    def put(name: str, **members: object) -> ModuleType:
        module = ModuleType(f"aptp.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"aptp.{name}", module)
        monkeypatch.setattr(aptp, name, module, raising=False)
        return module

    return put


class Harness:
    """Records what it is asked to run, leaves a folder, and fails as told."""

    def __init__(self) -> None:
        self.config: RunConfig | None = None
        self.out: Path | None = None
        self.resume: bool | None = None
        self.failure: BaseException | None = None

    def run(
        self, config: RunConfig, out: Path, *, resume: bool = False, host: Any, progress: Any, elsewhere: Any
    ) -> str:
        self.config, self.out, self.resume, self.elsewhere = config, out, resume, elsewhere
        if isinstance(self.failure, RequestError):
            raise self.failure
        out.mkdir(parents=True, exist_ok=True)
        with progress.task("search", 2) as advance:
            advance(note="loss 0.5")
            if self.failure:
                raise self.failure
        return "the record"

    def plan(self, config: RunConfig, out: Path, *, resume: bool = False, host: Any) -> SimpleNamespace:
        self.config = config
        if self.failure:
            raise self.failure
        stages = [
            SimpleNamespace(name="prepare", seconds=61.0, what="encode"),
            SimpleNamespace(name="search", seconds=3600.0, what="learn"),
        ]
        return SimpleNamespace(stages=stages, disk_mb=1234.4, memory_mb=567.0, cache="2 pictures are to be encoded")


@pytest.fixture
def harness(stand_in) -> Harness:
    def summary_table(record: str) -> Table:
        table = Table("method")
        table.add_row(f"row of {record}")
        return table

    fake = Harness()
    stand_in("harness", run=fake.run, plan=fake.plan, leave=lambda: None)
    stand_in("report", summary_table=summary_table)
    return fake


class Pipeline:
    """Sends prompts of odd length to expert 1; a picture's colour tells its expert, its seed and its prompt."""

    def __init__(self, margin: float = 0.5) -> None:
        self.margin = margin
        self.batches: list[int] = []

    def route(self, prompts: Sequence[str], *, fallback_margin: float = 0.0) -> list[Route]:
        if self.margin < fallback_margin:
            return [Route(text, DENSE, 1.0, self.margin) for text in prompts]
        return [Route(text, len(text) % 2, (0.25, 0.75)[len(text) % 2], self.margin) for text in prompts]

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        num_inference_steps: int,
        guidance_scale: float,
        seed: Sequence[int],
        batch_size: int,
        experts: Sequence[int],
    ) -> RoutedOutput:
        assert (num_inference_steps, guidance_scale) == (3, 2.0)
        self.batches.append(len(prompts))
        colours = [(expert, noise, len(text)) for text, noise, expert in zip(prompts, seed, experts, strict=True)]
        return RoutedOutput(
            [Image.new("RGB", (1, 1), colour) for colour in colours], list(experts), [1.0] * len(experts)
        )


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    fake = Pipeline()
    monkeypatch.setattr(aptp.pipeline, "load", lambda run: fake)
    monkeypatch.setattr(aptp.bundle, "load_finished", lambda run, host: fake)
    monkeypatch.setattr(aptp.routing, "read", lambda bundle, prompts: prompts)
    monkeypatch.setattr(aptp.routing, "route", lambda bundle, prompts: bundle.route(prompts))
    return fake


@pytest.fixture
def stand_ins() -> tuple[Harness, Pipeline]:
    """What `harness` and `pipeline` put in place, with nothing put in place."""
    return Harness(), Pipeline()
