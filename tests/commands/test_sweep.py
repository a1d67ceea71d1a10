"""`aptp sweep`: what it asks for, what it prints, its exit status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aptp import cluster
from aptp.cli import app
from aptp.cluster import Resources
from aptp.core.child import Start
from aptp.core.record import Record
from aptp.core.record import Result as Row
from aptp.host import default_host
from aptp.sweep import conduct as module
from aptp.sweep.grid import Cell, Sweep, cells
from aptp.sweep.table import Table


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments], env={"APTP_DEBUG": None, "COLUMNS": "200"})


class Conductor:
    """Records what it is asked to carry out; runs with seed 1 fail, the others are done."""

    cells: list[Cell] | None = None
    jobs: int | None = None
    failure: BaseException | None = None

    def __call__(
        self,
        cells: list[Cell],
        folder: Path,
        jobs: int | None,
        watch: Callable[[Table], None],
        results: Path | None,
        start: Start | None,
    ) -> Table:
        self.cells, self.jobs, self.results, self.start = cells, jobs, results, start
        table = Table.open(cells, folder)
        for entry in table.runs:
            entry.status = "running"
            watch(table)
            if self.failure:
                raise self.failure
            entry.seconds, entry.status = 61.0, "done"
            if entry.differences.get("seed") == 1:
                entry.status, entry.error = "failed", "RuntimeError: boom"
            else:
                figures: dict[str, Any] = {"fraction": 0.654, "macs": 1.0, "parameters": 1.0}
                row = Row(name="x", training_steps=1, training_seconds=1.0, metrics={"cmmd": 0.25}, **figures)
                record = Record(status="done", started="", config={}, versions={}, hardware={}, results=[row])
                record.save(Path(entry.folder) / "record.json")
                cell = next(cell for cell in cells if cell.name == entry.name)
                (Path(entry.folder) / "config.yaml").write_text(cell.config.to_yaml())
            watch(table)
        return table


@pytest.fixture
def conductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conductor:
    fake = Conductor()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "conduct", fake)
    return fake


def test_flags_are_a_grid(conductor: Conductor) -> None:
    Path("base.yaml").write_text("search: {steps: 9, batch: 4}\n")
    result = invoke(
        *("--router", "contrastive, kmeans", "--balancer", "none", "--seed", "0,2", "--budget", "macs:0.8,0.6"),
        *("--preset", "smoke", "--config", "base.yaml", "--set", "search.batch=5", "--jobs", "3", "--results", "kept"),
    )
    assert result.exit_code == 0, result.stderr
    assert (conductor.jobs, conductor.results, conductor.start) == (3, Path("kept"), None)
    assert len(conductor.cells) == 8
    first, *_, last = conductor.cells
    assert first.name == "router=contrastive,balancer=none,budget=macs-0.8,seed=0"
    assert (first.config.search.steps, first.config.search.batch, first.config.recover.steps) == (9, 5, 2)
    assert (last.config.router.name, last.config.budget.target, last.config.seed) == ("kmeans", 0.6, 2)
    assert Path("runs/sweep", first.name, "record.json").is_file()


def test_an_option_of_what_is_varied_is_every_runs(conductor: Conductor) -> None:
    assert invoke("--balancer", "sinkhorn,unbalanced", "--set", "balancer.epsilon=0.3", "--out", "x").exit_code in (
        0,
        1,
    )
    assert [cell.config.balancer.options["epsilon"] for cell in conductor.cells] == [0.3, 0.3]
    assert invoke("--budget", "latency:0.7,latency:0.5", "--set", "budget.batch=1", "--out", "y").exit_code in (0, 1)
    assert [cell.config.budget.options["batch"] for cell in conductor.cells] == [1, 1]
    assert [cell.config.budget.target for cell in conductor.cells] == [0.7, 0.5]


def test_results_are_kept_in_a_folder(conductor: Conductor) -> None:
    Path("kept").write_text("")
    result = invoke("--seed", "0", "--results", "kept")
    assert result.exit_code == 2
    assert "--results 'kept' is a file" in result.stderr


def test_a_file_is_a_sweep_named_after_it(conductor: Conductor) -> None:
    Path("mine.yaml").write_text("base: {search: {steps: 9}}\ngrid: {seed: [0]}\nruns: [{name: a}]\n")
    assert invoke("mine.yaml", "--set", "search.batch=5").exit_code == 0
    (cell,) = conductor.cells
    assert (cell.config.search.steps, cell.config.search.batch) == (9, 5)
    assert Path("runs/mine/a,seed=0").is_dir()
    assert invoke("mine.yaml", "--out", "x").exit_code == 0
    assert Path("x/a,seed=0").is_dir()


def test_it_ends_with_a_table_and_fails_if_a_run_did(conductor: Conductor) -> None:
    result = invoke("--seed", "0,1,2", "--out", "x")
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["run", "status", "cost", "CMMD", "↓", "time"]
    assert ["seed=0", "done", "0.654", "0.250", "0:01:01"] in rows
    assert ["seed=1", "failed", "0:01:01"] in rows
    assert "seed=1 failed: RuntimeError: boom\n" in result.stdout
    assert result.stdout.endswith("which method to use: aptp report x\n")
    assert result.stderr.splitlines() == [
        "seed=0 done in 0:01:01 (1 done, 0 running, 0 failed, 2 left, about 0:02:02 to go)",
        "seed=1 failed: RuntimeError: boom (1 done, 0 running, 1 failed, 1 left, about 0:01:01 to go)",
        "seed=2 done in 0:01:01 (2 done, 0 running, 1 failed, 0 left)",
    ]


def test_a_dry_run_lists_the_runs(conductor: Conductor) -> None:
    assert invoke("--seed", "0", "--out", "x").exit_code == 0
    Path("x/seed=0/report.html").touch()
    Path("x/seed=1").mkdir()
    conductor.cells = None
    result = invoke("--seed", "0,1,2", "--out", "x", "--dry-run")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    for name, state in (("seed=0", "done"), ("seed=1", "goes on"), ("seed=2", "new")):
        assert [name, *state.split(), f"x/{name}"] in rows
    assert "runs: 3, of which 2 to do" in result.stdout
    assert conductor.cells is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "neither a grid nor runs"),
        (["none.yaml"], "'none.yaml' cannot be read"),
        (["s.yaml", "--seed", "1"], "drop --seed, or the file"),
        (["s.yaml", "--preset", "smoke"], "drop --preset, or the file"),
        (["s.yaml", "--set", "seed=1"], "--set seed=1 sets what the sweep varies"),
        (["s.yaml", "--set", "experts=1"], "--set experts=1 sets what the sweep varies"),
        (["s.yaml", "--set", "experts"], "key.path=value"),
        (["--balancer", "sinkhorn,none", "--set", "balancer.epsilon=0.1"], "'epsilon'"),
        (["--balancer", "sinkhorn", "--set", "balancer=none"], "--set balancer=none sets what the sweep varies"),
        (["--set", "balancer=none", "v.yaml"], "--set balancer=none sets what the sweep varies"),
        (["--balancer", "sinkhorn:0.1", "--set", "balancer.epsilon=0.3"], "sets what the sweep varies"),
        (["--router", "kmeans,random", "--set", "router.name=random"], "sets what the sweep varies"),
        (["--budget", "0.5,0.66", "--set", "budget.target=0.5"], "sets what the sweep varies"),
        (["w.yaml", "--set", "recover.weights.distillation=1"], "sets what the sweep varies"),
        (["w.yaml", "--set", "balancer.epsilon=1"], "sets what the sweep varies"),
        (["--seed", "0,,1"], "--seed '0,,1' has an empty value"),
        (["--seed", "0,1,0"], "0 more than once for 'seed'"),
        (["--router", "kmeans", "--pruner", "random"], "drop it, or --router kmeans"),
        (["--seed", "0", "--jobs", "0"], "'--jobs'"),
        (["--seed", "0", "--out", "s.yaml"], "'s.yaml' is a file"),
        (["--seed", "0", "--config", "none.yaml"], "'none.yaml' cannot be read"),
    ],
)
def test_bad_requests_are_refused_before_the_first_run(
    arguments: list[str], named: str, conductor: Conductor, refusal
) -> None:
    Path("s.yaml").write_text("grid: {seed: [0]}\nruns: [{name: a, set: {experts: 2}}]\n")
    Path("w.yaml").write_text(
        "runs:\n- name: a\n  set:\n    recover.weights: {denoising: 1, distillation: 0, blocks: 0}\n"
        "    balancer: {name: sinkhorn, epsilon: 2}\n"
    )
    Path("v.yaml").write_text("grid: {balancer.epsilon: [0.1, 0.2]}\n")
    assert named in refusal(invoke(*arguments))
    assert conductor.cells is None
    assert not Path("runs").exists()


def test_a_cluster_starts_the_runs(conductor: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    @contextmanager
    def on_cluster(folder: Path, resources: Resources) -> Iterator[str]:
        asked.append((folder, resources))
        yield "the cluster's"

    monkeypatch.setattr(cluster, "on_cluster", on_cluster)
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    result = invoke("--seed", "0", "--executor", "ray", "--cpus", "2", "--gpus", "0.5", "--retries", "7")
    assert result.exit_code == 0, result.stderr
    assert (conductor.start, conductor.jobs) == ("the cluster's", None)
    assert invoke("--seed", "0", "--executor", "ray", "--jobs", "4").exit_code == 0
    assert conductor.jobs == 4
    assert asked == [(Path("runs/sweep"), Resources(2, 0.5, 7)), (Path("runs/sweep"), Resources())]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--executor", "ray"], "needs the package ray, which is not installed; pip install 'aptp[ray]'"),
        (["--executor", "rey"], "'rey' is not one of 'local', 'ray'"),
        (["--gpus", "1"], "--gpus 1.0 is for a Ray cluster; add --executor ray, or drop it"),
        (["--executor", "ray", "--cpus", "0"], "'--cpus'"),
        (["--executor", "ray", "--gpus", "1.5"], "--gpus 1.5 is neither a part of one nor a whole number"),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_refused(
    arguments: list[str], named: str, conductor: Conductor, monkeypatch: pytest.MonkeyPatch, refusal
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert named in refusal(invoke("--seed", "0", *arguments))
    assert conductor.cells is None


def test_a_stopped_and_a_broken_sweep_say_so_in_a_sentence(conductor: Conductor) -> None:
    conductor.failure = KeyboardInterrupt()
    result = invoke("--seed", "0")
    assert (result.exit_code, result.stderr) == (130, "aptp: the sweep was stopped\n")
    conductor.failure = OSError("disk full")
    result = invoke("--seed", "0")
    assert (result.exit_code, result.stderr) == (1, "aptp: the sweep failed: OSError: disk full\n")


def test_no_torch_is_imported_to_check_a_sweep(tmp_path: Path) -> None:
    program = (
        "import sys, atexit, aptp.cli\n"
        "atexit.register(lambda: print('torch' in sys.modules or 'aptp.harness' in sys.modules))\n"
        "aptp.cli.main()"
    )
    for router, status in (("contrastive,kmeans", 0), ("contrastive,kmean", 2)):
        command = [
            sys.executable,
            "-c",
            program,
            "sweep",
            "--router",
            router,
            "--dry-run",
            "--out",
            str(tmp_path / "x"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert done.stdout.splitlines()[-1] == "False"


def test_figures_that_lie_in_results_alone_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another machine did, of which there is a record and no folder."""
    monkeypatch.chdir(tmp_path)
    (cell,) = cells(Sweep(grid={"seed": [7]}), default_host())
    figures: dict[str, Any] = {"fraction": 0.654, "macs": 1.0, "parameters": 1.0}
    row = Row(name="contrastive+sinkhorn", training_steps=1, training_seconds=1.0, **figures)
    record = Record(status="done", started="", config=cell.config.model_dump(mode="json"), versions={}, hardware={})
    record.results, record.seconds = [row], {"search": 3600.0, "recover": 120.0}
    record.save(tmp_path / "kept/seed=7.json")
    result = invoke("--seed", "7", "--results", "kept")
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("seed=7"))
    assert "0.654" in line
    assert "1:02:00" in line
