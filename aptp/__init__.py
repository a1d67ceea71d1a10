"""Adaptive prompt-tailored pruning of text-to-image diffusion models.

Public names load on first use: `import aptp` brings in neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aptp.api import cost_model, search_space
    from aptp.core.architecture import Architecture, SearchSpace
    from aptp.core.gates import gated
    from aptp.core.hookspecs import PluginSpec, hookimpl
    from aptp.core.slicing import load_expert, slice
    from aptp.monitor import Monitor
    from aptp.pipeline import RoutedPipeline, load

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "aptp.core.architecture",
    "Monitor": "aptp.monitor",
    "PluginSpec": "aptp.core.hookspecs",
    "RoutedPipeline": "aptp.pipeline",
    "SearchSpace": "aptp.core.architecture",
    "cost_model": "aptp.api",
    "gated": "aptp.core.gates",
    "hookimpl": "aptp.core.hookspecs",
    "load": "aptp.pipeline",
    "load_expert": "aptp.core.slicing",
    "search_space": "aptp.api",
    "slice": "aptp.core.slicing",
}

__all__ = [
    "Architecture",
    "Monitor",
    "PluginSpec",
    "RoutedPipeline",
    "SearchSpace",
    "cost_model",
    "gated",
    "hookimpl",
    "load",
    "load_expert",
    "search_space",
    "slice",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aptp' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
