"""`aptp calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def calibration(stand_in) -> list[tuple]:
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

    stand_in("calibration", calibrate=calibrate, undo=lambda run: asked.append(("undo", run)))
    return asked


def test_calibrate_predicts_then_writes(calibration: list[tuple], invoke) -> None:
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


def test_a_calibration_is_undone(calibration: list[tuple], invoke) -> None:
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
def test_calibrate_refuses_half_a_request(
    calibration: list[tuple], flags: Sequence[str], named: str, invoke, refusal
) -> None:
    assert named in refusal(invoke("calibrate", "x", *flags))
    assert calibration == []


@pytest.mark.parametrize(
    ("content", "named"), [(b"", "no prompt"), (b"\xff\xfe", "not UTF-8"), (b"a star\n\n", "prompt 2 is empty")]
)
def test_calibrate_refuses_prompts_that_cannot_be_served(finished, content: bytes, named: str, invoke, refusal) -> None:
    Path("p.txt").write_bytes(content)
    budget = str(finished.record.experts[0].fraction)
    assert named in refusal(invoke("calibrate", finished.out, "--budget", budget, "--prompts", "p.txt"))
