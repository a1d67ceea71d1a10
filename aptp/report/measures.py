"""The rows and the figures that methods are compared by: names, directions, and who is ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aptp.core.record import Record, Result

FAMILIES = {
    "cmmd": ("CMMD", True),
    "frechet": ("Fréchet distance", True),
    "fid": ("FID", True),
    "kid": ("KID", True),
    "mse": ("MSE", True),
    "lpips": ("LPIPS", True),
    "clip_score": ("CLIP score", False),
}
"""How figures are printed, and whether less is better, by the start of their names."""
COMPANIONS = ("half", "floor", "real")
"""Ends of the names of figures that another one is read against (see `aptp.core.metric`)."""
TO_DENSE = "_to_dense"
"""The end of the names of distances to the dense model's pictures instead of the real ones."""
LEVEL = 1e-3
"""Figures nearer to one another than this share are called level."""


@dataclass(frozen=True)
class Measure:
    """A figure of a result. `less` says whether less is better, `None` that nobody knows."""

    key: str
    label: str
    detail: str
    less: bool | None
    of: Callable[[Result], float | None]

    @property
    def arrow(self) -> str:
        return {True: "↓", False: "↑", None: ""}[self.less]

    def companion(self, result: Result, end: str) -> float | None:
        """The figure of the same name that ends in `end`."""
        return result.metrics.get(f"{self.key}_{end}")

    def shared(self, results: Sequence[Result], end: str) -> float | None:
        """A companion that is the same for all results, as it is when it depends on real pictures alone."""
        values = [v for v in (self.companion(r, end) for r in results) if v is not None]
        return values[0] if values and all(math.isclose(v, values[0], rel_tol=1e-6) for v in values) else None

    def best(self, results: Sequence[Result]) -> list[Result]:
        """Those with the best value; nobody where no direction is known or fewer than two have one."""
        known = [(value, r) for r in results if (value := self.of(r)) is not None and math.isfinite(value)]
        if self.less is None or len(known) < 2:
            return []
        best = (min if self.less else max)(value for value, _ in known)
        return [r for value, r in known if value == best]


LATENCY = Measure("latency_ms", "latency", "8 inputs", True, lambda r: r.latency_ms)
MEMORY = Measure("peak_memory_mb", "peak memory", "of that call", True, lambda r: r.peak_memory_mb)
DISK = Measure("disk_mb", "on disk", "weights of all experts", True, lambda r: r.disk_mb)
TEACHER_ERROR = Measure("teacher_error", "teacher error", "MSE to dense", True, lambda r: r.teacher_error)


def method_of(record: Record) -> Result | None:
    """The row of the run's own method: the first that is pruned."""
    return next(iter(pruned_of(record)), None)


def dense_of(record: Record) -> Result | None:
    """The dense model's row."""
    return next((result for result in record.results if result.name == "dense"), None)


def pruned_of(record: Record) -> list[Result]:
    """The rows of all pruned methods."""
    return [result for result in record.results if result.name != "dense" and result.sampling_steps is None]


def metric_measures(results: Sequence[Result]) -> list[Measure]:
    """The metrics of the pictures, in the order in which results first name them; then how far the first distance says
    that pictures have moved from the dense model's. Companions, and what other distances say of that, are left out."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    moved = [name for name in names if name.endswith(TO_DENSE)]
    own = [name for name in names if name not in moved and not _is_companion(name, names)]
    return [_metric(name, names) for name in [*own, *moved[:1]]]


def quality_measures(results: Sequence[Result]) -> list[Measure]:
    """Teacher error, where it was measured, and the metrics."""
    measured = any(result.teacher_error is not None for result in results)
    return [*([TEACHER_ERROR] if measured else []), *metric_measures(results)]


def _is_companion(name: str, names: Sequence[str]) -> bool:
    base, _, end = name.rpartition("_")
    return end in COMPANIONS and base in names


def _metric(name: str, names: Sequence[str]) -> Measure:
    base = name.removesuffix(TO_DENSE)
    family = next((f for f in FAMILIES if base == f or base.startswith(f + "_")), None)
    less: bool | None = True if f"{base}_floor" in names else False if f"{base}_real" in names else None
    label, detail = base.replace("_", " "), ""
    if family:
        label, less = FAMILIES[family]
        features = base.removeprefix(family).strip("_")
        detail = f"{features} features" if features else ""
    if base != name:
        label, detail = f"{label} to dense", "same prompts and noise"
    return Measure(name, label, detail, less, lambda result: result.metrics.get(name))
