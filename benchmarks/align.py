"""What aligned widths gain in time and cost in quality, on the embedded model and on a larger one.

    python benchmarks/align.py --threads 1

The embedded model, pruned by Taylor's scores at several budgets in multiply-accumulates and not recovered: the error of
its output against the dense model's on held-out pictures, and its time as a share of the dense one's, all models taking
turns. Then a U-Net in the shape of Stable Diffusion 2.1 at half its width, of random weights, which has a time alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from latency import CPU_TIME
from test_slices import sd_shaped

import aptp
from aptp.api import denoiser_of
from aptp.baselines.taylor import TaylorPruner
from aptp.config import load_config
from aptp.core import timing
from aptp.core.architecture import harden
from aptp.core.calibration import calibrate
from aptp.core.progress import Quiet
from aptp.core.pruner import keep_best
from aptp.core.record import Record
from aptp.core.timing import latencies_ms, repeated
from aptp.harness.pruning import differentiable, pruner_context
from aptp.harness.workspace import Workspace
from aptp.host import default_host

ALIGN = (1, 8, 16, 32)
BUDGETS = (0.9, 0.8, 0.65, 0.5)
EQUAL = 0.65
"""The budget whose error, unaligned, is the quality at which times are compared."""
BATCH = 8


def opened(folder: str) -> Workspace:
    """The embedded model and some scenes, encoded."""
    flags = {
        "prepare": {"train": 128, "validation": 48},
        "evaluate": {"prompts": 4, "exam": 48},
        "compare": [],
        "search.batch": 16,
    }
    host = default_host()
    record = Record(started="", config={}, versions={}, hardware={})
    work = Workspace.open(load_config(flags=flags).resolved(host), Path(folder), host, Quiet(), record)
    source = work.dataset.fingerprint()
    work.train = work.preparer.pictures(work.chosen.train, source, "training")
    work.validation = work.preparer.pictures(work.chosen.validation, source, "held-out")
    return work


def embedded(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = opened(folder)
        context = pruner_context(work)
        with differentiable(work.dense, True):
            scores = TaylorPruner(TaylorPruner.Options()).scores(context)
        models, rows = [work.dense], []
        for align in ALIGN:
            space = aptp.search_space(work.dense, align=align)
            costs = aptp.cost_model(work.dense, space, sample_size=work.sample_size, text_tokens=work.text_tokens)
            for target in BUDGETS:
                asked = dataclasses.replace(context, space=space, cost_model=costs, target=target)
                architecture = keep_best(asked, scores)
                models.append(aptp.slice(work.dense, space, architecture))
                error = float(work.exam.errors(models[-1]).mean())
                rows.append((align, target, float(costs.fraction(architecture.gates)), error))
        dense, *times = latencies_ms(models, repeated(work.example_inputs, BATCH), rounds)
    print("| align | budget | MACs | teacher error | time |\n| --- | --- | --- | --- | --- |")
    for (align, target, macs, error), taken in zip(rows, times, strict=True):
        print(f"| {align} | {target} | {macs:.3f} | {error:.5f} | {taken / dense:.3f} |")
    wanted = next(error for align, target, _, error in rows if (align, target) == (ALIGN[0], EQUAL))
    print(
        f"\nTime at the teacher error {wanted:.5f}, between the rows (the error's logarithm is taken to be linear):\n"
    )
    print("| align | time |\n| --- | --- |")
    for align in ALIGN:
        curve = sorted((row[3], taken / dense) for row, taken in zip(rows, times, strict=True) if row[0] == align)
        errors, shares = zip(*curve, strict=True)
        print(f"| {align} | {np.interp(np.log(wanted), np.log(errors), shares):.3f} |")


def larger(rounds: int) -> None:
    unet, size, tokens = sd_shaped()
    unet.requires_grad_(False)
    scores = torch.rand(aptp.search_space(unet).num_gates, generator=torch.Generator().manual_seed(0))
    models, rows = [unet], []
    for align in ALIGN:
        space = aptp.search_space(unet, align=align)
        costs = aptp.cost_model(unet, space, sample_size=size, text_tokens=tokens)
        soft = torch.where(space.width_gates, scores, 1.0)  # the same blocks, all of them, in every row
        threshold = calibrate(costs, soft[None], torch.ones(1), EQUAL)
        architecture = aptp.Architecture(space, harden(space, soft, threshold))
        models.append(aptp.slice(unet, space, architecture))
        rows.append((align, float(costs.fraction(architecture.gates))))
    inputs = denoiser_of(unet).example_inputs(unet, size, tokens)
    dense, *times = latencies_ms(models, repeated(inputs, BATCH), rounds)
    print("\n| align | MACs | time |\n| --- | --- | --- |")
    for (align, macs), taken in zip(rows, times, strict=True):
        print(f"| {align} | {macs:.3f} | {taken / dense:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.cpu_time:
        timing.CLOCK = time.process_time
    embedded(asked.rounds)
    larger(asked.rounds)


if __name__ == "__main__":
    main()
