from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
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
from aptp import cluster
from aptp.cli import app
from aptp.config import RunConfig
from aptp.core.errors import RequestError
from aptp.explain import Explanation, Neighbour, Word
from aptp.pipeline import Route, RoutedOutput
from aptp.routing import DENSE


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env={"APTP_DEBUG": None, "COLUMNS": "200"})


def refusal(result: Result) -> str:
    """The one sentence of a refused request."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("aptp: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> ModuleType:
    """A module in place of `aptp.<name>`."""
    module = ModuleType(f"aptp.{name}")
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, f"aptp.{name}", module)
    monkeypatch.setattr(aptp, name, module, raising=False)
    return module


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
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    def summary_table(record: str) -> Table:
        table = Table("method")
        table.add_row(f"row of {record}")
        return table

    fake = Harness()
    stand_in(monkeypatch, "harness", run=fake.run, plan=fake.plan, leave=lambda: None)
    stand_in(monkeypatch, "report", summary_table=summary_table)
    return fake


def test_flags_become_the_configuration(harness: Harness) -> None:
    result = invoke(
        *(
            "run",
            "--out",
            "x",
            "--preset",
            "smoke",
            "--data",
            "scenes:7",
            "--encoder",
            "minilm",
            "--router",
            "contrastive",
        ),
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


def test_every_strategy_arrives_with_its_options_filled_in(harness: Harness) -> None:
    assert invoke("run").exit_code == 0
    assert harness.config.balancer.options["epsilon"] == 0.05
    assert harness.resume is False
    assert harness.elsewhere is None


def test_a_run_ends_with_its_table_and_report(harness: Harness) -> None:
    result = invoke("run", "--out", "x")
    assert "row of the record" in result.stdout
    assert result.stdout.endswith(f"report: {Path('x') / 'report.html'}\n")
    assert "search: 1/2" in result.stderr
    assert "loss 0.5" in result.stderr


def test_a_cluster_starts_what_can_be_done_apart(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster, "on_cluster", lambda *asked: nullcontext(asked))
    assert invoke("run", "--out", "x", "--executor", "ray", "--gpus", "1").exit_code == 0
    assert harness.elsewhere == (Path("x"), cluster.Resources(gpus=1))


def test_a_cluster_that_cannot_be_asked_is_refused(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'aptp[ray]'" in refusal(invoke("run", "--executor", "ray"))
    assert "--retries 1 is for a Ray cluster" in refusal(invoke("run", "--retries", "1"))
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "but 2 were launched" in refusal(invoke("run", "--executor", "ray"))
    assert harness.config is None


@pytest.mark.parametrize(("flags", "name"), [((), "contrastive"), (("--pruner", "magnitude"), "magnitude")])
def test_runs_are_named_after_what_they_do_and_when(flags: Sequence[str], name: str, harness: Harness) -> None:
    invoke("run", *flags)
    assert harness.out.match(f"runs/{name}-{'[0-9]' * 8}-{'[0-9]' * 6}")


def test_resume_without_a_folder_takes_the_newest_of_its_name(harness: Harness) -> None:
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


def test_compare_none_compares_with_nothing(harness: Harness) -> None:
    invoke("run", "--compare", "none")
    assert harness.config.compare == []
    assert "none" in refusal(invoke("run", "--compare", "none", "--compare", "magnitude"))


def test_a_dry_run_shows_the_plan_and_does_nothing(harness: Harness) -> None:
    result = invoke("run", "--dry-run", "--out", "x")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["prepare", "0:01:01", "encode"] in rows
    assert ["search", "1:00:00", "learn"] in rows
    assert ["in", "all", "1:01:01"] in rows
    assert "disk: 1,234 MB" in result.stdout
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
    arguments: list[str], named: str, harness: Harness
) -> None:
    Path("file").touch()
    assert named in refusal(invoke("run", *arguments))
    assert harness.config is None


def test_an_unreadable_configuration_is_refused(harness: Harness) -> None:
    Path("run.yaml").write_bytes(b"\xff\xfe")
    assert "'run.yaml' is not UTF-8" in refusal(invoke("run", "--config", "run.yaml"))
    Path("run.yaml").write_text("router: [")
    assert "'run.yaml' is not YAML" in refusal(invoke("run", "--config", "run.yaml"))


def test_what_the_harness_refuses_is_a_wrong_request(harness: Harness) -> None:
    harness.failure = RequestError("budget 0.1 is under the floor of 0.3.")
    assert refusal(invoke("run")) == "aptp: budget 0.1 is under the floor of 0.3.\n"
    assert refusal(invoke("run", "--dry-run")) == "aptp: budget 0.1 is under the floor of 0.3.\n"
    harness.failure = ValueError("no such thing\nand more")
    assert refusal(invoke("run", "--dry-run")) == "aptp: no such thing\n"


@pytest.mark.parametrize("failure", [RuntimeError("boom\nsecond line"), ValueError("boom.")])
def test_a_failed_run_says_how_to_go_on(failure: Exception, harness: Harness) -> None:
    harness.failure = failure
    result = invoke("run", "--out", "x")
    assert result.exit_code == 1
    name = type(failure).__name__
    hint = "what was computed is kept in x, add --resume to continue"
    assert result.stderr.splitlines()[-1] == f"aptp: the run failed: {name}: boom; {hint}"
    assert "Traceback" not in result.stderr


def test_debugging_shows_where_it_failed(harness: Harness) -> None:
    harness.failure = RuntimeError("boom")
    flagged = invoke("run", "--out", "x", "--debug")
    asked = CliRunner().invoke(app, ["run", "--out", "x"], env={"APTP_DEBUG": "1"})
    for result in (flagged, asked):
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("aptp: the run failed: RuntimeError: boom")


def test_an_interrupted_run_says_how_to_go_on(harness: Harness) -> None:
    harness.failure = KeyboardInterrupt()
    result = invoke("run", "--out", "x")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("what was computed is kept in x, add --resume to continue")


def test_report_of_one_run_writes_its_page_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write_report(run: Path) -> Path:
        written.append(run)
        return run / "report.html"

    stand_in(monkeypatch, "report", write_report=write_report)
    Path("a").mkdir()
    Path("a/record.json").touch()
    assert invoke("report", "a").stdout.split() == ["a/report.html"]
    assert written == [Path("a")]
    assert "run" in refusal(invoke("report")).lower()


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


def test_route_tells_expert_cost_and_margin(pipeline: Pipeline) -> None:
    result = invoke("route", "x", "a star", "[red] hat")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["a", "star", "0", "0.250", "0.500"] in rows
    assert ["[red]", "hat", "1", "0.750", "0.500"] in rows


def test_route_as_json_is_json_even_for_one_expert(pipeline: Pipeline) -> None:
    pipeline.margin = float("inf")
    Path("p.txt").write_text("a stär\nab\n", encoding="utf-8")
    expected = [
        {"prompt": "a stär", "expert": 0, "cost": 0.25, "margin": None},
        {"prompt": "ab", "expert": 0, "cost": 0.25, "margin": None},
    ]
    from_file = invoke("route", "x", "--prompts", "p.txt", "--json")
    assert json.loads(from_file.stdout, parse_constant=pytest.fail) == expected
    from_stdin = invoke("route", "x", "--prompts", "-", "--json", stdin="a stär\nab")
    assert json.loads(from_stdin.stdout) == expected


def test_route_as_csv_quotes_what_needs_it(pipeline: Pipeline) -> None:
    shown = invoke("route", "x", 'a "star", red', "ab", "--csv").stdout
    assert shown.splitlines()[:2] == ["prompt,expert,cost,margin", '"a ""star"", red",1,0.75,0.5']
    assert "exclude each other" in refusal(invoke("route", "x", "a", "--csv", "--json"))


def test_route_explains(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    words = [Word("STOP", 1, 0.25, 2), Word("word", 0, 0.125, 0), Word("red", 2, -0.5, 0)]
    whys = [
        Explanation(Route("word STOP red", 0, 0.5, 0.125), [Neighbour("a hat", 0.875, 1)], words),
        Explanation(Route("b", 0, 0.5, float("inf")), [], []),
    ]
    monkeypatch.setattr(aptp.explain, "explain", lambda bundle, prompts: whys)
    table = invoke("route", "x", "word STOP red", "b", "--explain").stdout
    for cell in ("a hat (0.88, expert 1)", "STOP (0.250, without it expert 2); word (0.125)", "none kept", "only one"):
        assert cell in table
    assert "red (" not in table
    header, first, _ = invoke("route", "x", "word STOP red", "b", "--explain", "--csv").stdout.splitlines()
    assert header == "prompt,expert,cost,margin,nearest,words"
    assert first.startswith('word STOP red,0,0.5,0.125,"a hat (0.88, expert 1)",')
    of_first, of_second = json.loads(invoke("route", "x", "word STOP red", "b", "--explain", "--json").stdout)
    assert of_first["nearest"] == [{"prompt": "a hat", "similarity": 0.875, "expert": 1}]
    assert of_first["words"][2] == {"text": "red", "place": 2, "lost": -0.5, "expert": 0}
    assert (of_second["margin"], of_second["words"]) == (None, [])


@pytest.mark.parametrize("command", [("route", "x"), ("generate", "x", "--out", "y")])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "'p.txt' cannot be read"),
        (b"", "no prompt"),
        (b"\n", "prompt 1 is empty"),
        (b"a star\n  \n", "prompt 2 is empty"),
        (b"a star\n" + b"x" * 10_001, "prompt 2 has 10,001 characters"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused(
    command: Sequence[str], content: bytes | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*asked: object) -> None:
        pytest.fail("the run was loaded before the prompts were checked")

    monkeypatch.setattr(aptp.pipeline, "load", load)
    monkeypatch.setattr(aptp.bundle, "load_finished", load)
    if content is not None:
        Path("p.txt").write_bytes(content)
    assert named in refusal(invoke(*command, "--prompts", "p.txt"))


def test_prompts_come_one_way(pipeline: Pipeline) -> None:
    Path("p.txt").write_text("a star\n")
    assert "--prompts" in refusal(invoke("route", "x"))
    assert "--prompts" in refusal(invoke("route", "x", "a star", "--prompts", "p.txt"))
    assert "'--prompts'" in refusal(invoke("generate", "x", "--out", "y"))


@pytest.mark.parametrize("command", [("route",), ("generate", "--out", "y")])
def test_a_folder_that_is_no_run_is_refused(command: Sequence[str]) -> None:
    Path("p.txt").write_text("a star\n")
    assert "'nowhere'" in refusal(invoke(*command, "nowhere", "--prompts", "p.txt"))


def test_generate_draws_every_prompt_in_its_place(pipeline: Pipeline) -> None:
    prompts = ["a", "bb", "a", "ccc", "bb", "a"]
    Path("p.txt").write_text("\n".join(prompts))
    result = invoke(
        *("generate", "x", "--prompts", "p.txt", "--out", "y", "--seed", "7", "--batch", "4", "--steps", "3"),
        *("--guidance", "2"),
    )
    assert result.exit_code == 0, result.stderr
    listed = json.loads(Path("y/pictures.json").read_text())
    assert [picture["prompt"] for picture in listed] == prompts
    assert [picture["expert"] for picture in listed] == [1, 0, 1, 1, 0, 1]
    assert [picture["cost"] for picture in listed] == [0.75, 0.25, 0.75, 0.75, 0.25, 0.75]
    assert [picture["seed"] for picture in listed] == [7, 7, 8, 7, 8, 9]  # a repeated prompt gets other noise
    assert [picture["file"] for picture in listed] == [f"{place:03d}.png" for place in range(6)]
    for picture in listed:
        with Image.open(Path("y") / picture["file"]) as image:
            assert image.getpixel((0, 0)) == (picture["expert"], picture["seed"], len(picture["prompt"]))
    assert pipeline.batches == [4, 2]


def test_generate_falls_back_to_the_dense_model(pipeline: Pipeline) -> None:
    Path("p.txt").write_text("a star\n")
    drawing = ("generate", "x", "--prompts", "p.txt", "--out", "y", "--steps", "3", "--guidance", "2")
    for margin, expert, cost in (("0.5", 0, 0.25), ("0.6", DENSE, 1.0)):
        result = invoke(*drawing, "--fallback-margin", margin)
        assert result.exit_code == 0, result.stderr
        (listed,) = json.loads(Path("y/pictures.json").read_text())
        assert (listed["expert"], listed["cost"]) == (expert, cost)


@pytest.mark.parametrize(
    "flags",
    [
        ("--fallback-margin", "-0.1"),
        ("--fallback-margin", "nan"),
        ("--steps", "0"),
        ("--batch", "0"),
        ("--guidance", "-1"),
        ("--seed", "-1"),
        ("--out", "p.txt"),
    ],
)
def test_generate_refuses_what_it_cannot_draw(flags: Sequence[str], pipeline: Pipeline) -> None:
    Path("p.txt").write_text("a star\n")
    assert flags[0] in refusal(invoke("generate", "x", "--prompts", "p.txt", "--out", "y", *flags))
    assert pipeline.batches == []


def test_plugins_are_listed_by_kind() -> None:
    everything = invoke("plugins", "list").stdout
    assert "contrastive" in everything
    assert "sinkhorn" in everything
    routers = invoke("plugins", "list", "--kind", "router").stdout
    assert "contrastive" in routers
    assert "sinkhorn" not in routers
    assert "did you mean 'router'" in refusal(invoke("plugins", "list", "--kind", "roter"))


def test_a_plugin_is_shown_with_its_options() -> None:
    shown = invoke("plugins", "show", "sinkhorn").stdout
    assert "balancer sinkhorn" in shown
    assert "from aptp.plugins" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert any(row[:5] == ["epsilon", "float,", ">", "0", "0.05"] for row in rows)
    assert "no options" in invoke("plugins", "show", "macs").stdout
    assert "needed" in invoke("plugins", "show", "clip").stdout
    assert "did you mean 'sinkhorn'" in refusal(invoke("plugins", "show", "sinkhor"))


def test_version_help_and_unknown_commands() -> None:
    assert invoke("--version").stdout == f"aptp {aptp.__version__}\n"
    for arguments in ((), ("--help",)):
        result = invoke(*arguments)
        assert result.exit_code == 0
        assert "generate" in result.stdout
    assert "'rum'" in refusal(invoke("rum"))


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["sweep", "--help"], 0),
        (["sweep", "--router", "contrastiv", "--seed", "0,1"], 2),
        (["sweep", "--seed", "0,1", "--set", "search.steps=0"], 2),
        (["plugins", "list"], 0),
        (["run", "--router", "contrastiv"], 2),
        (["run", "--set", "router.tempature=1"], 2),
        (["run", "--budget", "2"], 2),
        (["report", "--help"], 0),
        (["report", "nowhere", "elsewhere"], 2),
    ],
)
def test_help_lists_and_refusals_import_nothing_heavy(arguments: list[str], status: int) -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy", "matplotlib", "torchmetrics"}
    program = (
        "import sys, atexit, aptp.cli\n"
        f"atexit.register(lambda: print('HEAVY', *{heavy!r}.intersection(sys.modules)))\n"
        "aptp.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
    if status:
        assert done.stderr.startswith("aptp: ")
        assert done.stderr.count("\n") == 1


def test_python_dash_m_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "aptp", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"aptp {aptp.__version__}\n")


def test_the_stand_ins_have_the_real_signatures() -> None:
    import aptp.harness
    import aptp.report

    fake = Harness()
    for name in ("run", "plan"):
        real = inspect.signature(getattr(aptp.harness, name))
        assert list(real.parameters) == list(inspect.signature(getattr(fake, name)).parameters)
    drawing = set(inspect.signature(Pipeline.__call__).parameters)
    assert drawing <= set(inspect.signature(aptp.pipeline.RoutedPipeline.__call__).parameters)
    inspect.signature(aptp.report.write_report).bind(Path("x"))
    inspect.signature(aptp.report.summary_table).bind("record")


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What `aptp calibrate` asks of the module behind it."""
    asked: list[tuple] = []

    def effect(load: list[float], cost: float, error: float | None) -> SimpleNamespace:
        return SimpleNamespace(load=load, cost=cost, within=0.0125, teacher_error=error)

    def save(run: Path) -> Path:
        asked.append(("save", run))
        return run / "calibration.json"

    fitted = SimpleNamespace(
        fractions=[0.5, 0.9],
        prompts=4,
        before=effect([0.25, 0.75], 0.8, 0.00123),
        after=effect([0.75, 0.25], 0.6, None),
        save=save,
    )

    def calibrate(run: Path, budget: str, prompts: list[str], host: object) -> SimpleNamespace:
        asked.append((budget, prompts))
        return fitted

    stand_in(monkeypatch, "calibration", calibrate=calibrate, undo=lambda run: asked.append(("undo", run)))
    return asked


def test_calibrate_predicts_then_writes(calibration: list[tuple]) -> None:
    Path("p.txt").write_text("a\nb\n")
    dry = invoke("calibrate", "x", "--budget", "macs:0.6", "--prompts", "p.txt", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    rows = [line.split() for line in dry.stdout.splitlines()]
    assert ["expert", "1,", "cost", "0.900", "0.750", "0.250"] in rows
    assert ["expected", "cost", "0.800", "0.600"] in rows
    assert ["teacher", "error,", "predicted", "0.00123", "not", "known"] in rows
    assert rows[-1] == ["nothing", "was", "written."]
    done = invoke("calibrate", "x", "--budget", "macs:0.6", "--prompts", "p.txt")
    assert "aptp calibrate x --undo goes back" in done.stdout
    assert calibration == [("macs:0.6", ["a", "b"])] * 2 + [("save", Path("x"))]


def test_a_calibration_is_undone(calibration: list[tuple]) -> None:
    assert invoke("calibrate", "x", "--undo").stdout == "x serves as it came.\n"
    assert calibration == [("undo", Path("x"))]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "--budget"),
        (("--budget", "0.6"), "--prompts"),
        (("--prompts", "p.txt"), "--budget"),
        (("--undo", "--budget", "0.6"), "--undo stands alone"),
        (("--undo", "--dry-run"), "--undo stands alone"),
        (("--budget", "0.6", "--prompts", "none.txt"), "'none.txt' cannot be read"),
    ],
)
def test_calibrate_refuses_half_a_request(calibration: list[tuple], flags: Sequence[str], named: str) -> None:
    assert named in refusal(invoke("calibrate", "x", *flags))
    assert calibration == []


@pytest.mark.parametrize(
    ("content", "named"), [(b"", "no prompt"), (b"\xff\xfe", "not UTF-8"), (b"a star\n\n", "prompt 2 is empty")]
)
def test_calibrate_refuses_prompts_that_cannot_be_served(finished, content: bytes, named: str) -> None:
    Path("p.txt").write_bytes(content)
    budget = str(finished.record.experts[0].fraction)
    assert named in refusal(invoke("calibrate", finished.out, "--budget", budget, "--prompts", "p.txt"))
