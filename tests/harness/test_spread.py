"""Own phases in processes of their own: the same bits as in this one, and who fails is heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from aptp.cli import app
from aptp.cluster import Resources, on_cluster
from aptp.config import RunConfig
from aptp.core.architecture import Architecture
from aptp.core.child import Child
from aptp.core.errors import RequestError
from aptp.core.files import write_text
from aptp.core.progress import Quiet
from aptp.harness import spread as module
from aptp.harness.one_expert import recover_expert
from aptp.harness.recover import make_experts, recover, train_apart
from aptp.harness.search import Found
from aptp.harness.spread import OwnPhase
from aptp.harness.workspace import Workspace

EXPERTS = 3
PATIENCE = 900


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)


@pytest.fixture
def sliced(open_work) -> Callable[[str], Workspace]:
    """Makes run directories whose search is done, with experts that each serve some prompts."""

    def make(out: str, steps: int = 6) -> Workspace:
        random = {"router": {"name": "random"}, "balancer": {"name": "none"}, "search": {"start": None}}
        work = open_work(out, experts=EXPERTS, **random, recover={"steps": steps, "batch": 4}, device="cpu")
        architectures = [Architecture.random(work.space, keep=0.6, seed=seed) for seed in range(EXPERTS)]
        even = torch.full((EXPERTS,), 1 / EXPERTS).double()
        make_experts(work, Found(architectures, 0 * even, 0.5, even, 0.7, 0.7, {}))
        write_text(work.path("config.yaml"), work.config.to_yaml())
        work.keep()
        return work

    return make


def recovered(work: Workspace) -> dict[str, bytes]:
    """What recovery leaves, of experts and of steps."""
    folders = [work.path(f"experts/{index:02d}") for index in range(EXPERTS)]
    recover(
        work, [Architecture.load(folder / "architecture.json") for folder in folders], torch.zeros(EXPERTS).double()
    )
    files = [*(folder / "expert.safetensors" for folder in folders), work.path("logs/recover.jsonl")]
    return {str(file.relative_to(work.out)): file.read_bytes() for file in files}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


class Here:
    """Trains an expert when it is asked how that goes, or leaves a log and a status instead."""

    instead: tuple[int, str] | None = None
    """Of the first task."""

    def __init__(self, work: Workspace) -> None:
        self.work, self.tasks, self.killed = work, [], []

    def __call__(self, arguments: Sequence[str], log: Path) -> _Task:
        assert arguments[:4] == ["-m", "aptp", "recover-expert", str(self.work.out)]
        self.tasks.append(int(arguments[4]))
        return _Task(self, int(arguments[4]), log)


class _Task:
    def __init__(self, here: Here, index: int, log: Path) -> None:
        self.here, self.index, self.log = here, index, log

    def began(self) -> bool:
        return True

    def poll(self) -> int:
        if self.here.instead and self.index == self.here.tasks[0]:
            status, said = self.here.instead
            self.log.write_text(said)
            return status
        phase = OwnPhase.load(self.here.work.out, self.index)
        train_apart(self.here.work, self.index, phase, lambda step, values: None)
        self.log.write_text("warning: the node is old.\n")
        return 0

    def kill(self) -> None:
        self.here.killed.append(self.index)


def test_experts_trained_apart_are_the_same(sliced) -> None:
    work = sliced("apart")
    here = work.elsewhere = Here(work)
    assert recovered(work) == recovered(sliced("together"))
    assert here.tasks == [0, 1, 2]
    assert work.record.warnings == ["the node is old."] * EXPERTS


def test_what_is_done_is_not_done_again(sliced) -> None:
    work = sliced("run")
    here = work.elsewhere = Here(work)
    whole = recovered(work)
    work.path("checkpoints/recover-01.safetensors").unlink()
    assert recovered(work) == whole
    assert here.tasks == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("instead", "error", "said"),
    [
        ((2, "chatter\naptp: checkpoint 'x' is damaged.\n"), RequestError, "checkpoint 'x' is damaged."),
        ((1, "aptp: the loss of step 3 is nan.\nchatter\n"), RuntimeError, "the loss of step 3 is nan."),
        ((1, "nothing"), RuntimeError, r"the recovery of expert 0 ended with exit status 1; see .*recover-00\.log"),
        ((-signal.SIGKILL, ""), RuntimeError, "the recovery of expert 0 was killed by SIGKILL"),
    ],
)
def test_who_fails_is_heard_and_ends_the_others(sliced, instead: tuple, error: type[Exception], said: str) -> None:
    work = sliced("run")
    here = work.elsewhere = Here(work)
    here.instead = instead
    with pytest.raises(error, match=said):
        recovered(work)
    assert here.killed == here.tasks == [0, 1, 2]


def test_a_folder_without_word_of_an_expert_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["recover-expert", str(tmp_path), "0"])
    assert result.exit_code == 2
    assert "is no run directory that says how expert 0 is recovered" in result.stderr


def test_an_expert_that_is_trained_apart_needs_no_costs(sliced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of time would measure its table again on each node."""

    def cost_by(*_: object, **options: object) -> None:
        raise AssertionError("costs were asked for")

    work = sliced("run")
    OwnPhase(torch.arange(4), 2).save(work.out, 0)
    monkeypatch.setattr(Workspace, "cost_by", cost_by)
    recover_expert(work.out, 0, host=work.host, progress=Quiet())
    assert lines(work.path("logs/recover-00.jsonl")) == 2


@pytest.mark.slow
def test_a_process_of_its_own_makes_the_same_bits(sliced) -> None:
    def start(arguments: Sequence[str], log: Path) -> Child:
        with log.open("wb") as output:
            return Child(arguments, output, os.environ | {"OMP_NUM_THREADS": "1"})

    work = sliced("apart")
    work.elsewhere = start
    assert recovered(work) == recovered(sliced("together"))
    assert "recovering expert 2: " in work.path("logs/recover-02.log").read_text()


@pytest.mark.slow
def test_recovery_survives_a_node(ray_cluster, sliced) -> None:
    whole = recovered(sliced("together", steps=90))
    work = sliced("apart", steps=90)
    killed: list[str] = []

    class Killing:
        """Loses the node of an expert in the midst of its training."""

        def __init__(self, task) -> None:
            self.task = task

        def poll(self) -> int | None:
            log = work.path("logs/recover-00.log")
            if not killed and lines(work.path("logs/recover-00.jsonl")) > 2:
                killed.append(log.read_text().split()[2])
                ray_cluster.kill(killed[0])
            return self.task.poll()

        def kill(self) -> None:
            self.task.kill()

    with on_cluster(work.out, Resources()) as start:
        work.elsewhere = lambda arguments, log: Killing(start(arguments, log))
        assert recovered(work) == whole
    first, second = (
        line for line in work.path("logs/recover-00.log").read_text().splitlines() if line.startswith("on node")
    )
    assert first == f"on node {killed[0]}" != second


@pytest.fixture
def config(finished) -> RunConfig:
    """The finished run's, but for what comes after recovery."""
    less = finished.config.evaluate.model_copy(update={"prompts": 6, "gallery": 0})
    return finished.config.model_copy(update={"compare": [], "evaluate": less})


@pytest.fixture
def command(config: RunConfig, tmp_path: Path) -> Iterator[list[str]]:
    """`aptp run` on the cluster, in `tmp_path/run`."""
    write_text(tmp_path / "run.yaml", config.to_yaml())
    run = ["run", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--resume"]
    return [sys.executable, "-m", "aptp", *run, "--executor", "ray"]


@pytest.mark.slow
def test_a_run_goes_on_when_all_that_was_started_it_is_lost(ray_cluster, finished, command, tmp_path: Path) -> None:
    """The process that spreads is killed, and its tasks end with it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment)
    try:
        until(lambda: lines(tmp_path / "run/logs/recover-00.log") > 0 or first.poll() is not None)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert subprocess.run(command, env=environment, timeout=PATIENCE, check=False).returncode == 0
    for name in ("logs/recover.jsonl", *(f"experts/{index:02d}/expert.safetensors" for index in range(EXPERTS))):
        assert (tmp_path / "run" / name).read_bytes() == (finished.out / name).read_bytes(), name
