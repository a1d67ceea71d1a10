"""The table of the budget `latency` against the times of whole sliced models.

    python benchmarks/latency.py --model embedded --threads 1

One row an architecture, drawn at random: its share of the dense multiply-accumulates, and of the dense time as
estimated and as measured, all models taking turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import torch
from test_slices import MODELS

import aptp
from aptp.api import denoiser_of
from aptp.core import timing
from aptp.plugins.budgets.latency import LatencyBudget

CPU_TIME = "count the process's time on the processor, for a machine that other work keeps busy; with one thread"
KEEP = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--align", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.cpu_time:
        timing.CLOCK = time.process_time
    unet, size, tokens = MODELS[asked.model]()
    unet.requires_grad_(False)
    space = aptp.search_space(unet, blocks="all", align=asked.align)
    family = denoiser_of(unet)
    inputs = family.example_inputs(unet, size, tokens)
    budget = LatencyBudget(LatencyBudget.Options(batch=asked.batch, rounds=asked.rounds))
    with tempfile.TemporaryDirectory() as cache:  # measured anew, whatever was kept
        os.environ["APTP_CACHE"] = cache
        costs = budget.profile(family, unet, space, inputs)
    macs = aptp.cost_model(unet, space, sample_size=size, text_tokens=tokens)
    gates = [aptp.Architecture.random(space, keep, seed).gates for seed, keep in enumerate(KEEP)]
    models = [aptp.slice(unet, space, aptp.Architecture(space, row)) for row in gates]
    dense, *times = budget.measured([unet, *models], inputs)
    print(f"dense: {costs.dense:.1f} ms in the table, {dense:.1f} ms measured")
    print("| MACs | time, estimated | time, measured | error |\n| --- | --- | --- | --- |")
    errors = []
    for row, taken in zip(gates, times, strict=True):
        estimated, measured = float(costs.fraction(row)), taken / dense
        errors.append(estimated / measured - 1)
        print(f"| {float(macs.fraction(row)):.3f} | {estimated:.3f} | {measured:.3f} | {errors[-1]:+.1%} |")
    print(f"largest error {max(map(abs, errors)):.1%}, mean {sum(map(abs, errors)) / len(errors):.1%}")


if __name__ == "__main__":
    main()
