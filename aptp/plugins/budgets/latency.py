"""Latency: wall time on the device at hand, from a table that is measured once."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from aptp.core import distributed
from aptp.core.architecture import Architecture, SearchSpace, harden
from aptp.core.budget import BudgetEstimator, CostModel, Layer
from aptp.core.denoiser import Denoiser
from aptp.core.errors import gist
from aptp.core.files import default_cache, write_json
from aptp.core.slicing import slice
from aptp.core.timing import device_name, latencies_ms, own_times_ms, repeated
from aptp.plugins.options import LatencyOptions

VERSIONS = ("aptp", "torch", "diffusers")
"""The libraries that a call runs through."""

Table = dict[str, dict[int, float]]
"""By path of a part, milliseconds a call by the units that it keeps; by that of a block, or `""` for the model, those
of all in it that is no part of its own, by 0."""


class LatencyBudget(BudgetEstimator):
    """Times one call of a batch, in milliseconds.

    The model is sliced to several widths, all sites alike, and each part's own time is taken inside the call, where
    caches and memory are as they are in service: medians of alternating rounds, less what watching takes. Between the
    widths time is taken to be linear, and wider never to be faster (isotonic regression), as calibration needs. The
    table lies in the cache, by device, versions, model, space, sizes and these options, so that a resumed run finds it.

    Processes of a run that were launched together call `profile` together; the main one measures.
    """

    Options = LatencyOptions

    def __init__(self, options: LatencyOptions) -> None:
        self.options = options

    def profile(
        self, denoiser: Denoiser, module: nn.Module, space: SearchSpace, example_inputs: Mapping[str, Tensor]
    ) -> CostModel:
        inputs = repeated(example_inputs, self.options.batch)
        table = distributed.on_main(lambda: self._table(module, space, inputs))
        parts = {site.path: site for site in space.sites if not site.is_block}
        layers = [
            Layer(path, *_rising(times), parts[path]) if path in parts else Layer(path, times[0])
            for path, times in table.items()
        ]
        return CostModel(space, layers, "milliseconds")

    def measured(self, modules: Sequence[nn.Module], example_inputs: Mapping[str, Tensor]) -> list[float]:
        return latencies_ms(modules, repeated(example_inputs, self.options.batch), self.options.rounds)

    def _table(self, module: nn.Module, space: SearchSpace, inputs: Mapping[str, Any]) -> Table:
        """The table of the cache, or a new one. One program measures at a time."""
        # diffusers adds a place, and a list whose order differs from process to process
        config = {name: value for name, value in module.config.items() if not name.startswith("_")}
        asked = {
            "device": device_name(module.device),
            "versions": {name: metadata.version(name) for name in VERSIONS},
            "model": [type(module).__name__, str(module.dtype), config],
            "space": space.signature,
            "inputs": _shapes(inputs),
            "options": self.options.model_dump(),
        }
        told = json.dumps(asked, sort_keys=True, default=str)
        file = default_cache() / "latency" / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.parent / ".lock"):
            if (kept := _kept(file, space)) is not None:
                return kept
            times = self._measure(module, space, inputs)
            write_json(file, {**json.loads(told), "milliseconds": {p: list(t.items()) for p, t in times.items()}})
            return times

    def _measure(self, module: nn.Module, space: SearchSpace, inputs: Mapping[str, Any]) -> Table:
        paths = {site.path for site in space.sites}
        levels = [_narrowed(space, level) for level in np.linspace(0, 1, self.options.widths).tolist()]
        kept = [
            {s.path: len(units) for s, units in zip(space.sites, level.kept, strict=True) if not s.is_block}
            for level in levels
        ]
        samples: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        wholes: list[list[float]] = [[] for _ in levels]
        for round_ in range(self.options.rounds + 1):  # the first warms up
            for level, units, whole in zip(levels, kept, wholes, strict=True):
                sliced = slice(module, space, level).eval()
                times = own_times_ms(sliced, paths, inputs)
                unwatched = own_times_ms(sliced, (), inputs)[""]
                if round_:
                    whole.append(unwatched)
                    for path, spent in times.items():
                        samples[path][units.get(path, 0)].append(spent)
        table = {path: {u: statistics.median(spent) for u, spent in by.items()} for path, by in samples.items()}
        surplus = statistics.fmean(
            sum(by[units.get(path, 0)] for path, by in table.items()) - statistics.median(whole)
            for units, whole in zip(kept, wholes, strict=True)
        )
        return _unwatched(table, surplus)


def _kept(file: Path, space: SearchSpace) -> Table | None:
    """The table of a file, or None where there is none; one that is damaged is worth a warning."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))["milliseconds"]
        table = {path: {int(units): float(ms) for units, ms in times} for path, times in said.items()}
        if table.keys() != {"", *(site.path for site in space.sites)} or not all(table.values()):
            raise ValueError("it is of another model")
        if not all(0 <= ms < math.inf for times in table.values() for ms in times.values()):
            raise ValueError("it has times that are none")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.warn(f"the table of times {str(file)!r} is damaged ({gist(error)}): measured anew.", stacklevel=2)
        return None
    return table


def _unwatched(table: Table, surplus: float) -> Table:
    """Without what watching took: as much for each part, half of it in the part and half in what it lies in."""
    each = surplus / 2 / max(1, len(table) - 1)
    less = dict.fromkeys(table, 0.0)
    for path in table.keys() - {""}:
        around = max((p for p in table if path.startswith(f"{p}.")), key=len, default="")
        less[path] += each
        less[around] += each
    return {path: {u: max(0.0, ms - less[path]) for u, ms in sorted(by.items())} for path, by in table.items()}


def _narrowed(space: SearchSpace, level: float) -> Architecture:
    """Every width site somewhere between one unit (level 0) and all (level 1); blocks stay."""
    gates = space.ones()
    for site, place in zip(space.sites, space.slices, strict=True):
        if not site.is_block:
            gates[place] = (torch.arange(site.units) < 1 + round(level * (site.units - 1))).float()
    return Architecture(space, harden(space, gates))


def _rising(times: Mapping[int, float]) -> tuple[float, tuple[float, ...]]:
    """A part's time at its narrowest, and what each unit adds, from the first, which adds nothing to that."""
    units = sorted(times)
    fitted = isotonic_regression([times[count] for count in units]).x
    every = np.interp(range(1, units[-1] + 1), units, fitted)
    return float(every[0]), (0.0, *np.diff(every).tolist())


def _shapes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _shapes(value) if isinstance(value, Mapping) else [str(value.dtype), *value.shape]
        for name, value in inputs.items()
    }
