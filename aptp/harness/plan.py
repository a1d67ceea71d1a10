"""What a run would do, how long it would take and what it needs, from a few timed calls of the real model."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from aptp.config import RunConfig
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.core.timing import settle
from aptp.harness.data import Need
from aptp.harness.hardness import TIMES
from aptp.harness.measure import peak_memory_mb
from aptp.harness.workspace import Workspace
from aptp.host import Host
from aptp.kept import check_folder

PROBE = 4
"""Pictures in a timed call."""
PNG = 0.6
"""Bytes of a picture's file for a byte of its pixels: of photographs, drawings take less."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage, its expected wall time, and what it does."""

    name: str
    seconds: float
    what: str


@dataclass(frozen=True)
class Plan:
    """All stages, about the disk that the run's folder takes, what its cache needs, and its peak of tensor memory.

    In MB (10⁶ bytes), but for the cache.
    """

    stages: list[PlannedStage]
    disk_mb: float
    cache: Need
    memory_mb: float


def plan(config: RunConfig, out: Path, *, resume: bool = False, host: Host) -> Plan:
    """Check a resolved configuration for the directory `out` and estimate its stages; `out` is left as it is.

    Raises:
        RequestError: exactly where a run would.
    """
    check_folder(config.settled(), out, resume)
    with tempfile.TemporaryDirectory() as folder:
        record = Record(started="", config={}, versions={}, hardware={})
        work = Workspace.open(config.settled(), Path(folder), host, Quiet(), record)
        return _estimate(work)


def _estimate(work: Workspace) -> Plan:
    config, target = work.config, work.config.budget.target
    need = work.need(work.dataset.fingerprint())
    need.check()
    pictures = need.pictures + need.mirrored
    call = _seconds_of_call(work)
    encode = _seconds_of_encoding(work)
    prompts = min(config.evaluate.prompts, len(work.chosen.validation))
    methods = 1 + len(config.compare)
    guided = 2 if config.evaluate.guidance > 1 else 1
    calls, dense_calls = (guided * steps for steps in (config.evaluate.steps, sum(config.evaluate.dense_steps)))
    pruners = [work.host.target("pruner", choice.name) for choice in (config.pruner, *config.compare) if choice]
    own = config.pruner is None and work.bare_router().learns
    searches = own + sum(pruner.searches for pruner in pruners)
    # a backward pass costs about two forward ones, or one where no weight takes a gradient
    search = config.search.steps * config.search.batch * call * (config.search.weights.distill + 1 + 1.2) * searches
    allowances = config.experts if config.recover.per == "expert" else 1
    steps = (len(config.compare) + allowances) * config.recover.steps
    # joint steps are of the dense size, and a single model has none
    together = config.recover.joint * allowances * config.recover.steps if config.experts > 1 else 0
    trained = (2.2 if config.recover.rank else 3) * (together + target * (steps - together))
    recover = config.recover.batch * call * (config.recover.weights.distill * steps + trained)
    adapt = config.adapt.steps * config.adapt.batch * call * 3
    drawn = 1 + len(config.evaluate.dense_steps) + methods
    draw = prompts * ((calls * (1 + target * methods) + dense_calls) * call + encode * drawn)
    exam, asked = _exam(config, len(work.chosen.validation), call)
    weights = sum(p.numel() * 4 for p in work.dense.parameters()) / 1e6
    side = work.sample_size * work.pipeline.vae_scale_factor
    shown = prompts * (1 + drawn) * PNG * 3 * side**2 / 1e6  # real ones, too
    whose = "expert" if config.recover.per == "expert" else "pruned model"
    stages = [
        PlannedStage("prepare", pictures * encode, f"encode {pictures:,} pictures and their captions"),
        PlannedStage("adapt", adapt, f"{config.adapt.steps:,} steps of fine-tuning the dense model"),
        PlannedStage("search", search, f"{config.search.steps:,} steps for {config.experts} experts"),
        PlannedStage("recover", recover, f"{steps:,} steps, {config.recover.steps:,} for each {whose}"),
        PlannedStage("exam", exam, f"{asked:,} noised pictures on the dense model and every expert"),
        PlannedStage("generate", draw, f"{prompts:,} pictures of the dense and each pruned model ({drawn})"),
    ]
    all_weights = config.adapt.steps or (config.recover.steps and not config.recover.rank)
    states = weights * (4 if all_weights else 1)
    activations = peak_memory_mb(work.denoiser, work.dense, work.sample_size, work.text_tokens) - weights
    return Plan(
        [stage for stage in stages if stage.seconds],
        _weights_mb(config, weights) + shown,
        need,
        weights + states + 3 * activations * max(config.search.batch, config.recover.batch) / 8,
    )


def _weights_mb(config: RunConfig, dense: float) -> float:
    """About the MB of experts, and of the two checkpoints that each phase of training leaves, given the dense weights'.

    A checkpoint has the weights, and of all that are trained Adam's two moments. Adaptation trains text encoders, too,
    whose part is not counted.
    """
    target, recover = config.budget.target, config.recover
    routed = config.experts if config.pruner is None else 1
    singles = len(config.compare) + (routed == 1)
    joint = recover.joint if routed > 1 else 0
    own = target * (singles + (routed if routed > 1 and joint < 1 else 0))
    kept = own + (joint == 1)  # of which all experts are slices then
    checkpoint = 1 if recover.rank else 3
    trained = 2 * checkpoint * ((1 if joint else 0) + own) if recover.steps else 0
    adapted = 1 + 2 * 3 if config.adapt.steps else 0
    return dense * (kept + trained + adapted)


def _exam(config: RunConfig, held_out: int, call: float) -> tuple[float, int]:
    """Time of comparing experts with the dense model, and the pictures on which that is done."""
    pictures, target = min(config.evaluate.exam, held_out), config.budget.target
    calls = 1 + target * (config.experts + len(config.compare)) + (TIMES * (1 + target) if config.experts > 1 else 0)
    return pictures * calls * call, pictures


@torch.no_grad()
def _seconds_of_call(work: Workspace) -> float:
    """Forward time of the dense denoiser for one picture."""
    inputs = work.example_inputs
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(PROBE):
            work.dense(**inputs)
        settle(work.device)
        times.append((time.perf_counter() - start) / PROBE)
    return statistics.median(times[1:])


@torch.no_grad()
def _seconds_of_encoding(work: Workspace) -> float:
    """Time of the VAE for one picture."""
    vae = work.pipeline.vae
    size = work.sample_size * work.pipeline.vae_scale_factor
    pixels = torch.zeros(PROBE, 3, size, size, device=vae.device, dtype=vae.dtype)
    vae.encode(pixels)
    settle(work.device)
    start = time.perf_counter()
    vae.encode(pixels)
    settle(work.device)
    return (time.perf_counter() - start) / PROBE
