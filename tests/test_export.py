"""`aptp export`: a bundle, or one expert that stands alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import aptp
from aptp.cli import app
from aptp.core.manifest import Manifest
from aptp.graphs import NAMES


def export(run: Path, to: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["export", str(run), "--to", str(to), *flags], env={"APTP_DEBUG": None})


def test_a_bundle_is_exported(finished, tmp_path: Path) -> None:
    done = export(finished.out, tmp_path / "bundle")
    assert (done.exit_code, done.stdout) == (0, f"the bundle is in {tmp_path / 'bundle'}\n"), done.output
    assert "experts/02/expert.safetensors" in Manifest.load(tmp_path / "bundle").files


def test_an_expert_is_exported_with_the_line_that_loads_it(finished, tmp_path: Path) -> None:
    done = export(finished.out, tmp_path / "one", "--expert", "1")
    assert (done.exit_code, done.stdout) == (0, f"expert 1 is in {tmp_path / 'one'}\n"), done.output
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", "architecture.json", "config.json", "expert.safetensors"]
    for name in files[1:]:
        assert (tmp_path / "one" / name).read_bytes() == (finished.out / "experts/01" / name).read_bytes()
    note = (tmp_path / "one/README.md").read_text()
    assert 'unet = aptp.load_expert("this folder")  # a stock UNet2DConditionModel' in note
    aptp.load_expert(tmp_path / "one")


@pytest.mark.slow
def test_a_graph_is_exported_with_the_line_that_loads_it(finished, tmp_path: Path) -> None:
    done = export(finished.out, tmp_path / "one", "--expert", "1", "--format", "torch")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["README.md", NAMES["torch"]]
    note = (tmp_path / "one/README.md").read_text()
    assert 'torch.export.load("expert.pt2").module()' in note
    assert "latents of 8 × 8" in note
    torch.export.load(tmp_path / "one" / NAMES["torch"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--expert", "3"], "there is no expert 3;"),
        (["--expert", "-1"], "there is no expert -1;"),
        (["--expert", "one"], "should be a valid integer"),
        (["--format", "onnx"], "--format onnx is for one expert; name it with --expert."),
        (["--expert", "1", "--format", "gguf"], "'gguf' is not one of"),
    ],
)
def test_wrong_requests_are_refused(finished, tmp_path: Path, flags: list[str], words: str) -> None:
    done = export(finished.out, tmp_path / "new", *flags)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(finished, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for flags in ([], ["--expert", "1"]):
        done = export(finished.out, tmp_path, *flags)
        assert done.exit_code == 2
        assert "is there already and not an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_refusals_come_before_any_work(finished, tmp_path: Path) -> None:
    """Before torch, even, and before anything of the run is read but the names of its files."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    (tmp_path / "run/router").mkdir(parents=True)
    (tmp_path / "run/router/router.json").touch()
    program = (
        "import sys, atexit, aptp.core.extras, aptp.cli\n"
        "aptp.core.extras.find_spec = lambda name: None\n"
        "atexit.register(lambda: print('HEAVY', *{'torch', 'diffusers'}.intersection(sys.modules)))\n"
        "aptp.cli.main()"
    )
    whole, new = str(finished.out), str(tmp_path / "new")
    for arguments, words in {
        (whole, "--to", str(tmp_path / "full")): "is there already and not an empty folder",
        (whole, "--to", str(tmp_path / "full/mine.txt/new")): "is no folder to write into",
        (
            whole,
            "--to",
            new,
            "--expert",
            "1",
            "--format",
            "onnx",
        ): "--format onnx needs onnx, onnxscript, not installed",
        (str(tmp_path / "full"), "--to", new): "is no run with a router",
        (str(tmp_path / "run"), "--to", new, "--expert", "0"): "there is no expert 0;",
    }.items():
        command = [sys.executable, "-c", program, "export", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "HEAVY\n"), done.stderr
        assert words in done.stderr


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = export(tmp_path, tmp_path / "new")
    assert done.exit_code == 2
    assert "is no run with a router" in done.stderr
