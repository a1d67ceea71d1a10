from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from aptp.cli import app
from aptp.core.files import write_json
from aptp.core.record import Record


@pytest.fixture(autouse=True)
def _in_a_folder_of_runs(make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, record in zip(("a", "b", "c"), (*make.pair(1), make.record(0, recover__steps=400)), strict=True):
        record.save(f"{name}/record.json")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments], env={"APTP_DEBUG": None, "COLUMNS": "200"})


def refusal(*arguments: str) -> str:
    """The one sentence of a refused request, which leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert sorted(Path().rglob("*")) == before
    return result.stderr


def told(folder: str) -> dict:
    return json.loads((Path(folder) / "report.json").read_text())


def sweep(**statuses: str) -> None:
    """A sweep whose table lies beside the runs; its folders are named as from elsewhere."""
    entry = {"differences": {}, "error": None, "seconds": 1.0}
    runs = [{**entry, "name": name, "folder": f"elsewhere/{name}", "status": s} for name, s in statuses.items()]
    for run in runs:
        run["error"] = "boom" if run["status"] in ("failed", "refused") else None
    write_json("sweep.json", {"format": 1, "runs": runs})


def test_several_runs_are_compared_in_the_default_folder() -> None:
    result = invoke("a", "b")
    assert result.stdout.split() == ["runs/report/report.html"]
    assert sorted(path.name for path in Path("runs/report").iterdir()) == [
        f"report.{x}" for x in ("csv", "html", "json", "md")
    ]
    assert told("runs/report")["command"] == "aptp report a b"
    assert not Path("a/report.html").exists()


def test_the_command_that_is_kept_makes_the_same_report() -> None:
    invoke("a", "b", "--out", "x y", "--reference", "taylor")
    kept = told("x y")
    assert kept["command"] == "aptp report a b --out 'x y' --reference taylor"
    assert kept["reference"] == "taylor"


def test_one_record_alone_is_a_comparison() -> None:
    Path("a/record.json").rename("copy.json")
    assert invoke("copy.json").stdout.split() == ["runs/report/report.html"]


def test_a_copy_of_a_record_may_stand_beside_its_folder() -> None:
    Path("copy.json").write_bytes(Path("a/record.json").read_bytes())
    assert invoke("copy.json", "a", "b").exit_code == 0
    assert [run["name"] for run in told("runs/report")["runs"]] == ["a", "b"]


def test_a_sweep_is_its_finished_runs() -> None:
    sweep(a="done", b="done", x="failed", y="refused", c="waiting", z="running")
    Record.load("c/record.json").model_copy(update={"status": "running"}).save("c/record.json")
    assert invoke(".", "--out", "out").exit_code == 0
    found = told("out")
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["failures"] == [{"name": "x", "error": "boom"}, {"name": "y", "error": "boom"}]
    assert found["warnings"] == ["runs of '.' that are not finished are left out: c, z."]


def test_a_run_of_a_sweep_that_was_finished_by_hand_counts() -> None:
    sweep(a="failed", b="running")
    assert invoke(".", "--out", "out").exit_code == 0
    assert [run["name"] for run in told("out")["runs"]] == ["a", "b"]
    assert not told("out")["failures"]


def test_a_run_of_a_sweep_that_was_done_elsewhere_comes_from_its_record() -> None:
    Path("results").mkdir()
    Path("b/record.json").rename("results/b.json")
    Path("b").rmdir()
    sweep(a="done", b="done")
    assert invoke(".", "--out", "out").exit_code == 0
    assert told("out")["warnings"] == ["runs of '.' that have no folder there are left out: b."]
    assert invoke(".", "results/b.json", "--out", "out").exit_code == 0
    assert told("out")["warnings"] == []
    assert [run["name"] for run in told("out")["runs"]] == ["a", "results/b.json"]


def test_a_sweep_has_no_runs_outside_its_folder() -> None:
    Path("home").mkdir()
    sweep(**{"../a": "done"})
    Path("sweep.json").rename("home/sweep.json")
    assert "names a run '../a', which is no folder of the sweep" in refusal("home")


def test_a_comparison_among_the_runs_is_passed_over() -> None:
    for _ in range(2):
        assert invoke("a", "b", *map(str, Path("runs").glob("*"))).exit_code == 0
    assert [run["name"] for run in told("runs/report")["runs"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("config", {"evaluate": None}, "config.evaluate: "),
        ("routing", {"hardness": {"low": 0.1}}, "routing.hardness.spearman: "),
        ("routing", {"cross": {"teacher_error": [[0.1, None]]}}, "routing.cross.teacher_error: 4 rows of 4"),
    ],
)
def test_a_record_whose_parts_are_wrong_is_refused_by_name(part: str, value: dict, said: str) -> None:
    record = json.loads(Path("a/record.json").read_text())
    record[part] |= value
    Path("a/record.json").write_text(json.dumps(record))
    assert f"'a/record.json' is not the record of a run: {said}" in refusal("a", "b")


def test_a_failed_run_is_counted_and_named() -> None:
    Record(status="failed", error="ValueError: boom", started="", config={}, versions={}, hardware={}).save(
        "d/record.json"
    )
    assert invoke("a", "d").exit_code == 0
    assert told("runs/report")["failures"] == [{"name": "d", "error": "ValueError: boom"}]


def test_protocols_are_mixed_only_when_asked_to() -> None:
    assert "differ in recover.steps (100 in 'a', 400 in 'c')" in refusal("a", "b", "c")
    assert invoke("a", "b", "c", "--mixed").exit_code == 0
    assert list(told("runs/report")["protocols"]) == ["A", "B"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "nowhere"], "'nowhere' is no run: it does not exist"),
        (["a", "empty"], "'empty' is no run: it has no record.json"),
        (["a", "b", "./a"], "'a' is named more than once"),
        (["a", "unfinished"], "'unfinished' is not finished"),
        (["a", "b", "--out", "file"], "'file' is a file"),
        (["a", "b", "--out", "a"], "'a' is the folder of a run"),
        (["a", "b", "--reference", "tailor"], "did you mean 'taylor'"),
        (["a", "same"], "'a' and 'same' are the same run"),
        (["broken"], "'broken/sweep.json' is not the table of a sweep"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(arguments: list[str], said: str) -> None:
    for name in ("empty", "broken"):
        Path(name).mkdir()
    Path("broken/sweep.json").write_text("{")
    Path("file").touch()
    Record.load("a/record.json").save("same/record.json")
    Record(started="", config={}, versions={}, hardware={}).save("unfinished/record.json")
    assert said in refusal(*arguments)


def test_a_sweep_of_which_nothing_is_finished_is_refused() -> None:
    sweep(x="failed", y="waiting")
    assert "none of the runs is finished" in refusal(".")
