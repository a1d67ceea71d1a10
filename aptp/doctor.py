"""Is this installation whole? Libraries, hardware, plugins, embedded assets."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from aptp.core.errors import RequestError
from aptp.host import KINDS, Host


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, or, if `broken`, what is wrong."""

    subject: str
    found: str
    broken: bool = False


def examine() -> list[Finding]:
    """Everything that can be checked without a run; imports every strategy."""
    return [*libraries(), *hardware(), *plugins(), *assets(Path(str(files("aptp"))) / "assets")]


def libraries(distribution: str = "aptp") -> list[Finding]:
    """The required libraries, with their versions against those asked for."""
    from packaging.requirements import Requirement

    findings = [Finding("python", platform.python_version())]
    for text in metadata.requires(distribution) or ():
        required = Requirement(text)
        if required.marker and not required.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(required.name, f"missing; {required.specifier or 'any version'} is needed", True))
            continue
        fits = required.specifier.contains(version, prereleases=True)
        findings.append(
            Finding(required.name, version if fits else f"{version}; {required.specifier} is needed", not fits)
        )
    return findings


def hardware() -> list[Finding]:
    """The device torch would use, cores and memory."""
    findings = []
    try:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        findings.append(Finding("device", f"{device}, {torch.get_num_threads()} threads"))
    except (ImportError, OSError, RuntimeError) as error:
        findings.append(Finding("device", f"torch does not work: {error}", True))
    findings.append(Finding("cores", str(os.cpu_count())))
    try:
        import psutil

        memory = psutil.virtual_memory()
        findings.append(Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"))
    except ImportError:
        findings.append(Finding("memory", "unknown: psutil is missing", True))
    return findings


def plugins() -> list[Finding]:
    """Every registered strategy and its options model, imported."""
    try:
        host = Host()
    except RequestError as error:
        return [Finding("plugins", str(error), True)]
    return [finding for kind in KINDS for finding in _strategies(host, kind)]


def _strategies(host: Host, kind: str) -> Iterable[Finding]:
    good = []
    for name in host.specs(kind):
        try:
            host.target(kind, name)
            host.options_model(kind, name)
        except Exception as error:  # importing a strategy may raise anything
            yield Finding(f"{kind} {name}", str(error), True)
        else:
            good.append(name)
    yield Finding(f"{kind} plugins", ", ".join(good) or "none")


def assets(folder: Path) -> list[Finding]:
    """The embedded pipeline, evaluator and presets: there, and whole."""
    findings = []
    for name, needed in (("tiny", _components(folder / "tiny")), ("evaluator", ["config.json", "model.safetensors"])):
        missing = [path for path in needed if not (folder / name / path).exists()]
        damaged = [
            str(path.relative_to(folder)) for path in sorted((folder / name).rglob("*.safetensors")) if not _opens(path)
        ]
        wrong = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"damaged: {', '.join(damaged)}"] * bool(damaged)
        findings.append(Finding(f"embedded {name}", "; ".join(wrong) or "whole", bool(wrong)))
    presets = sorted(path.stem for path in (folder / "presets").glob("*.yaml"))
    findings.append(Finding("presets", ", ".join(presets) or "none found", not presets))
    return findings


def _components(pipeline: Path) -> list[str]:
    """What a diffusers folder must hold, by its own index."""
    try:
        index: dict[str, Any] = json.loads((pipeline / "model_index.json").read_text())
    except (OSError, ValueError):
        return ["model_index.json"]
    return [name for name, origin in index.items() if isinstance(origin, list) and origin[0]]


def _opens(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):
            return True
    except (OSError, SafetensorError):
        return False
