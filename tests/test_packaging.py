"""What a user is handed: the wheel holds all that is needed to run, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import aptp

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel, which is built from a copy because building leaves files behind."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    shutil.copytree(ROOT / "aptp", source / "aptp", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", home, source], check=True)
    with zipfile.ZipFile(next(home.glob("*.whl"))) as file:
        return set(file.namelist())


@pytest.mark.slow
def test_wheel_holds_the_whole_package_and_only_that(wheel: set[str]) -> None:
    files = (path for path in (ROOT / "aptp").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {name for name in wheel if ".dist-info/" not in name} == {str(path.relative_to(ROOT)) for path in files}


@pytest.mark.slow
def test_wheel_holds_the_licence(wheel: set[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_version_is_one() -> None:
    assert aptp.__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_fit_the_dependencies() -> None:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    asked = {(r := Requirement(text)).name.lower(): r.specifier for text in texts}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(re.fullmatch(r"([\w.-]+)==([\w.+]+)", line).groups() for line in lines if line and line[0] != "#")
    assert "torch" in pinned
    for name, version in pinned.items():
        assert asked[name.lower()].contains(version), f"{name}=={version} is not {asked[name.lower()]}"


def test_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_one_pip_command_installs_everything() -> None:
    assert len(re.findall(r"pip install", (ROOT / "Makefile").read_text())) == 1
