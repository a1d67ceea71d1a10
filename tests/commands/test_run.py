"""`aptp run`: what its flags mean, what it prints, its exit status."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aptp import cluster
from aptp.cli import app
from aptp.core.errors import RequestError


def test_flags_become_the_configuration(harness, invoke) -> None:
    result = invoke(
        *("run", "--out", "x", "--preset", "smoke", "--data", "scenes:7", "--encoder", "minilm"),
        *("--router", "contrastive"),
        *("--balancer", "entropy", "--granularity", "depth", "--budget", "params:0.8", "--metric", "cmmd"),
        *("--metric", "clip-score", "--compare", "random", "--compare", "magnitude", "--experts", "3"),
        *("--adapt-steps", "11", "--search-steps", "12", "--recover-steps", "13", "--seed", "14", "--device", "cpu"),
        *("--set", "balancer.weight=0.25", "--set", "search.rate=1e-3", "--resume"),
    )
    assert result.exit_code == 0, result.stderr
    config = harness.config
    assert (harness.out, harness.resume) == (Path("x"), True)
    assert config.data.options["seed"] == 7
    assert (config.balancer.name, config.balancer.options["weight"]) == ("entropy", 0.25)
    assert (config.granularity.name, config.encoder.name) == ("depth", "minilm")
    assert (config.budget.name, config.budget.target) == ("params", 0.8)
    assert [metric.name for metric in config.metrics] == ["cmmd", "clip-score"]
    assert [pruner.name for pruner in config.compare] == ["random", "magnitude"]
    assert (config.adapt.steps, config.search.steps, config.recover.steps) == (11, 12, 13)
    assert (config.experts, config.seed, config.device, config.search.rate) == (3, 14, "cpu", 1e-3)
    assert config.search.batch == 4  # the preset's


def test_every_strategy_arrives_with_its_options_filled_in(harness, invoke) -> None:
    assert invoke("run").exit_code == 0
    assert harness.config.balancer.options["epsilon"] == 0.05
    assert harness.resume is False
    assert harness.elsewhere is None


def test_a_run_ends_with_its_table_and_report(harness, invoke) -> None:
    result = invoke("run", "--out", "x")
    assert "row of the record" in result.stdout
    assert result.stdout.endswith(f"report: {Path('x') / 'report.html'}\n")
    assert "search: 1/2" in result.stderr
    assert "loss 0.5" in result.stderr


def test_a_cluster_starts_what_can_be_done_apart(harness, monkeypatch: pytest.MonkeyPatch, invoke) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster, "on_cluster", lambda *asked: nullcontext(asked))
    assert invoke("run", "--out", "x", "--executor", "ray", "--gpus", "1").exit_code == 0
    assert harness.elsewhere == (Path("x"), cluster.Resources(gpus=1))


def test_a_cluster_that_cannot_be_asked_is_refused(harness, monkeypatch: pytest.MonkeyPatch, invoke, refusal) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'aptp[ray]'" in refusal(invoke("run", "--executor", "ray"))
    assert "--retries 1 is for a Ray cluster" in refusal(invoke("run", "--retries", "1"))
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "but 2 were launched" in refusal(invoke("run", "--executor", "ray"))
    assert harness.config is None


@pytest.mark.parametrize(("flags", "name"), [((), "contrastive"), (("--pruner", "magnitude"), "magnitude")])
def test_runs_are_named_after_what_they_do_and_when(flags: Sequence[str], name: str, harness, invoke) -> None:
    invoke("run", *flags)
    assert harness.out.match(f"runs/{name}-{'[0-9]' * 8}-{'[0-9]' * 6}")


def test_resume_without_a_folder_takes_the_newest_of_its_name(harness, invoke, refusal) -> None:
    assert "no contrastive run to resume" in refusal(invoke("run", "--resume"))
    for name in (
        "contrastive-20250102-030405",
        "contrastive-20250101-235959",
        "constant-20260101-000000",
        "contrastive-x",
    ):
        (Path("runs") / name).mkdir(parents=True)
    assert invoke("run", "--resume").exit_code == 0
    assert harness.out == Path("runs/contrastive-20250102-030405")


def test_compare_none_compares_with_nothing(harness, invoke, refusal) -> None:
    invoke("run", "--compare", "none")
    assert harness.config.compare == []
    assert "none" in refusal(invoke("run", "--compare", "none", "--compare", "magnitude"))


def test_a_dry_run_shows_the_plan_and_does_nothing(harness, invoke) -> None:
    result = invoke("run", "--dry-run", "--out", "x")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["prepare", "0:01:01", "encode"] in rows
    assert ["search", "1:00:00", "learn"] in rows
    assert ["in", "all", "1:01:01"] in rows
    assert "disk: about 1,234 MB" in result.stdout
    assert "cache: 2 pictures are to be encoded" in result.stdout
    assert "memory: 567 MB" in result.stdout
    assert harness.out is None
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--router", "contrastiv"], "did you mean 'contrastive'"),
        (["--metric", "cmd"], "did you mean 'cmmd'"),
        (["--compare", "magnitud"], "did you mean 'magnitude'"),
        (["--pruner", "magnitud"], "did you mean 'magnitude'"),
        (["--data", "scene"], "did you mean 'scenes'"),
        (["--model", "tyni"], "'tyni'"),
        (["--model", "./nowhere"], "'./nowhere'"),
        (["--budget", "0"], "'0'"),
        (["--budget", "1.2"], "'1.2'"),
        (["--budget", "macs:nan"], "'nan'"),
        (["--experts", "0"], "experts' of the run is 0"),
        (["--experts", "few"], "'--experts'"),
        (["--device", "gpu"], "'gpu'"),
        (["--preset", "smok"], "did you mean 'smoke'"),
        (["--config", "none.yaml"], "'none.yaml' cannot be read"),
        (["--set", "experts"], "key.path=value"),
        (["--set", "router.tempature=1"], "did you mean 'temperature'"),
        (["--set", "serch.steps=1"], "'serch'"),
        (["--bugdet", "0.5"], "--bugdet"),
        (["more"], "more"),
        (["--pruner", "magnitude", "--router", "contrastive"], "--router contrastive"),
        (["--pruner", "magnitude", "--experts", "2"], "--experts 2"),
        (["--out", "file"], "'file' is a file"),
    ],
)
def test_bad_requests_are_refused_before_the_harness_is_asked(
    arguments: list[str], named: str, harness, invoke, refusal
) -> None:
    Path("file").touch()
    assert named in refusal(invoke("run", *arguments))
    assert harness.config is None


def test_an_unreadable_configuration_is_refused(harness, invoke, refusal) -> None:
    Path("run.yaml").write_bytes(b"\xff\xfe")
    assert "'run.yaml' is not UTF-8" in refusal(invoke("run", "--config", "run.yaml"))
    Path("run.yaml").write_text("router: [")
    assert "'run.yaml' is not YAML" in refusal(invoke("run", "--config", "run.yaml"))


def test_what_the_harness_refuses_is_a_wrong_request(harness, invoke, refusal) -> None:
    harness.failure = RequestError("budget 0.1 is under the floor of 0.3.")
    assert refusal(invoke("run")) == "aptp: budget 0.1 is under the floor of 0.3.\n"
    assert refusal(invoke("run", "--dry-run")) == "aptp: budget 0.1 is under the floor of 0.3.\n"
    harness.failure = ValueError("no such thing\nand more")
    assert refusal(invoke("run", "--dry-run")) == "aptp: no such thing\n"


@pytest.mark.parametrize("failure", [RuntimeError("boom\nsecond line"), ValueError("boom.")])
def test_a_failed_run_says_how_to_go_on(failure: Exception, harness, invoke) -> None:
    harness.failure = failure
    result = invoke("run", "--out", "x")
    assert result.exit_code == 1
    name = type(failure).__name__
    hint = "what was computed is kept in x, add --resume to continue"
    assert result.stderr.splitlines()[-1] == f"aptp: the run failed: {name}: boom; {hint}"
    assert "Traceback" not in result.stderr


def test_debugging_shows_where_it_failed(harness, invoke) -> None:
    harness.failure = RuntimeError("boom")
    flagged = invoke("run", "--out", "x", "--debug")
    asked = CliRunner().invoke(app, ["run", "--out", "x"], env={"APTP_DEBUG": "1"})
    for result in (flagged, asked):
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("aptp: the run failed: RuntimeError: boom")


def test_an_interrupted_run_says_how_to_go_on(harness, invoke) -> None:
    harness.failure = KeyboardInterrupt()
    result = invoke("run", "--out", "x")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("what was computed is kept in x, add --resume to continue")


def test_the_stand_ins_have_the_real_signatures(stand_ins) -> None:
    import aptp.harness
    import aptp.pipeline
    import aptp.report

    harness, pipeline = stand_ins
    for name in ("run", "plan"):
        real = inspect.signature(getattr(aptp.harness, name))
        assert list(real.parameters) == list(inspect.signature(getattr(harness, name)).parameters)
    drawing = set(inspect.signature(type(pipeline).__call__).parameters)
    assert drawing <= set(inspect.signature(aptp.pipeline.RoutedPipeline.__call__).parameters)
    inspect.signature(aptp.report.write_report).bind(Path("x"))
    inspect.signature(aptp.report.summary_table).bind("record")
