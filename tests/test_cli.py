"""The program: its help, and what it imports to give it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import aptp
from aptp.cli import SPINS, app


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_version_help_and_unknown_commands() -> None:
    program = CliRunner()
    assert program.invoke(app, ["--version"]).stdout == f"aptp {aptp.__version__}\n"
    for arguments in ([], ["--help"]):
        result = program.invoke(app, arguments)
        assert result.exit_code == 0
        assert "generate" in result.stdout
    refused = program.invoke(app, ["rum"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("aptp: ")
    assert refused.stderr.count("\n") == 1
    assert "'rum'" in refused.stderr


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
    heavy |= {"pydantic"} if arguments == ["--help"] else set()
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


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP elsewhere")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
    ids=str,
)
def test_threads_wait_a_little_unless_the_environment_says_otherwise(given: dict[str, str], spins: str | None) -> None:
    program = (
        "import sys, atexit, os, aptp.cli\n"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT')))\n"
        "aptp.cli.main()"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", program, "--version"]
    done = subprocess.run(command, env=plain | given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(spins)


def test_python_dash_m_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "aptp", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"aptp {aptp.__version__}\n")
