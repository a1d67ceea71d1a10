"""`aptp serve`: what it refuses before it loads anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import aptp.commands.serve
from aptp.cli import app

GOOD = "correct-horse-battery"


def refusal(*arguments: str, env: dict[str, str] | None = None) -> str:
    done = CliRunner(env={"APTP_API_KEY": None} | (env or {})).invoke(app, ["serve", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("aptp: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0", "--port", "0"], "--host 0.0.0.0 lets others in, so it needs an API key"),
        (["--steps", "30", "--max-steps", "20"], "--steps 30 is more than --max-steps 20"),
        (["--guidance", "31"], "'--guidance'"),
        (["--max-count", "9", "--queue", "8"], "--max-count 9 is more than --queue 8"),
        (["--port", "70000"], "'--port'"),
        (["--batch", "0"], "'--batch'"),
        (["--timeout", "inf"], "'--timeout'"),
        (["--wait", "nan"], "'--wait'"),
        (["--api-key-file", "nowhere"], "--api-key-file 'nowhere' cannot be read"),
        (["--port", "0"], "is no run with a router"),
    ],
)
def test_wrong_requests_are_refused(flags: Sequence[str], words: str, tmp_path: Path) -> None:
    assert words in refusal(str(tmp_path), *flags)


@pytest.mark.parametrize(
    "key", ["", "short", "with a space in the middle", "ключ-длинный-достаточно", "two\nlines-of-a-file"]
)
def test_a_bad_key_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key)
    for answer in (refusal("x", "--api-key-file", str(tmp_path / "key")), refusal("x", env={"APTP_API_KEY": key})):
        assert "holds no good API key" in answer
        assert not key or key not in answer


def test_with_a_key_others_may_be_let_in(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(GOOD + "\n")
    answer = refusal(str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--api-key-file", str(tmp_path / "key"))
    assert "is no run with a router" in answer


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aptp.commands.serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert "aptp serve needs uvicorn, not installed; pip install 'aptp[serve]'." in refusal("x")


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["x", "--host", "0.0.0.0", "--port", "0"], 2)])
def test_help_and_refusals_import_nothing_heavy(arguments: list[str], status: int) -> None:
    program = (
        "import sys, atexit, aptp.cli\n"
        "atexit.register(lambda: print('HEAVY', *{'torch', 'fastapi', 'uvicorn'}.intersection(sys.modules)))\n"
        "aptp.cli.main()"
    )
    command = [sys.executable, "-c", program, "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
