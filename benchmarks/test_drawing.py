"""Drawing in bf16 (`evaluate.precision`): its time as a ratio to float32's, and how far its pictures are from those.

Distances are root mean squares over the pixels, of 255; that of 16 sampling steps from 25 stands beside as a measure.
`pytest benchmarks/test_drawing.py --benchmark-only -s`
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from aptp.harness.training import autocast
from aptp.models import load_pipeline
from aptp.plugins.datasets.scenes import Scenes

PICTURES, ROUNDS = 40, 3


def test_bf16(benchmark):
    pipeline = load_pipeline("tiny", torch.device("cpu"))
    prompts = [sample.caption for sample in Scenes(Scenes.Options()).samples("validation")[:PICTURES]]

    def draw(precision: str, steps: int = 25) -> tuple[float, np.ndarray]:
        noise = [torch.Generator().manual_seed(seed) for seed in range(PICTURES)]
        began = time.perf_counter()
        with autocast(torch.device("cpu"), precision):
            drawn = pipeline(
                prompts, num_inference_steps=steps, guidance_scale=3.0, generator=noise, output_type="np"
            ).images
        return time.perf_counter() - began, 255 * drawn

    times: dict[str, list[float]] = {"fp32": [], "bf16": []}

    def both() -> None:
        for precision, mine in times.items():
            mine.append(draw(precision)[0])

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    ratio = median(b / a for a, b in zip(times["fp32"][1:], times["bf16"][1:], strict=True))
    exact = draw("fp32")[1]
    others = {"bf16": draw("bf16")[1], "16 steps": draw("fp32", 16)[1]}
    apart = {name: float(np.sqrt(((other - exact) ** 2).mean())) for name, other in others.items()}
    benchmark.extra_info.update(ratio=ratio, apart=apart)
    print(f"\nbf16: time ×{ratio:.2f}; away from float32: {apart}")
