"""A stranger's package, installed beside aptp in an environment of its own, enters by the door of the built-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def aptp(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The program `aptp` of a fresh environment that holds aptp and the examples.

    Their libraries are those of this environment, by a path file; nothing is downloaded.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home / "venv")
    python = home / "venv" / "bin" / "python"
    paths = {"base": str(home / "venv"), "platbase": str(home / "venv")}
    site = Path(sysconfig.get_path("purelib", vars=paths))
    ours = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in ours))
    sources = [_copied(home, "aptp", ROOT, ("aptp", "pyproject.toml", "README.md", "LICENSE"))]
    sources += [_copied(home, name, ROOT / "examples" / name) for name in ("aptp-prompt-length", "aptp-auraflow")]
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    _run([sys.executable, "-m", "pip", "--python", python, *install, *sources])

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return _run([home / "venv" / "bin" / "aptp", *arguments], cwd=home)

    return run


def _copied(home: Path, name: str, source: Path, parts: tuple[str, ...] = ()) -> Path:
    """A copy to build from: building leaves files in the source tree."""
    target = home / "sources" / name
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for part in parts or [path.name for path in source.iterdir()]:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=ignore)
        else:
            shutil.copy(source / part, target / part)
    return target


def _run(command: list, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "COLUMNS")
    }
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("kind", "name", "package"), [("router", "length", "aptp-prompt-length"), ("denoiser", "auraflow", "aptp-auraflow")]
)
def test_what_a_package_brings_is_listed_with_it(aptp: Run, kind: str, name: str, package: str) -> None:
    row = next(line for line in aptp("plugins", "list").stdout.splitlines() if f" {name} " in line)
    assert row.split()[:2] == [kind, name]
    assert f"{package} 0.1.0" in row


def test_options_are_shown(aptp: Run) -> None:
    shown = aptp("plugins", "show", "length").stdout
    assert "spread" in shown
    assert "1.0" in shown


def test_router_runs_to_the_end(aptp: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    aptp("run", "--router=length", "--preset", "smoke", "--out", str(out))
    record = json.loads((out / "record.json").read_text())
    assert record["status"] == "done"
    assert record["config"]["router"] == {"name": "length", "spread": 1.0, "noise": 0.1}
    assert (out / "report.html").is_file()
    routed = json.loads(
        aptp("route", str(out), "a dot", "a prompt that goes " + "on and " * 10 + "on", "--json").stdout
    )
    assert [route["expert"] for route in routed] == [0, 1]
