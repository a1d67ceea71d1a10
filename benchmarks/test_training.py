"""What a step of recovery takes, in time and memory, plain and with what saves either.

A step is the forward and backward pass of a student with the dense model as teacher, over a batch of 8. Its time is
told as a ratio to the plain step of the same round, its memory as what tensors hold beside the weights.
`pytest benchmarks/test_training.py --benchmark-only -s`
"""

from __future__ import annotations

import copy
import time
from statistics import median

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from aptp.api import denoiser_of
from aptp.config import DistillOptions, RecoverWeights
from aptp.harness.measure import _LiveTensors
from aptp.harness.training import Distiller, Noiser, recomputing

BATCH, ROUNDS = 8, 5


def sd_shaped() -> UNet2DConditionModel:
    """Stable Diffusion 2.1's U-Net at a fifth of its width."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 256, 256),
        attention_head_dim=(1, 2, 4, 4),
        norm_num_groups=32,
        cross_attention_dim=128,
        use_linear_projection=True,
    ).requires_grad_(False)


class Step:
    """A step that can be repeated."""

    def __init__(
        self, parts: int = 1, precision: str = "fp32", checkpointing: bool = False, compiled: bool = False
    ) -> None:
        torch.manual_seed(0)
        teacher = sd_shaped()
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        self.checkpointing = checkpointing
        denoiser = denoiser_of(teacher)
        self.distiller = Distiller(denoiser, teacher, DistillOptions(), precision)
        if compiled:
            for path in self.distiller.blocks:
                block = self.student.get_submodule(path)
                block.forward = torch.compile(block.forward)
        noiser = Noiser(denoiser, DDIMScheduler(), torch.device("cpu"))
        noised = noiser.draw(torch.randn(BATCH, 4, 32, 32), torch.Generator().manual_seed(0))
        size = BATCH // parts
        text = {"encoder_hidden_states": torch.randn(size, 77, 128)}
        rows = [slice(size * place, size * (place + 1)) for place in range(parts)]
        self.examples = [noiser.example(noised, part, text) for part in rows]

    def __call__(self) -> None:
        self.student.zero_grad(set_to_none=True)
        with recomputing(self.student, self.checkpointing):
            self.distiller.learn(self.student, self.examples, RecoverWeights())

    def seconds(self) -> float:
        start = time.perf_counter()
        self()
        return time.perf_counter() - start

    def peak_mb(self) -> float:
        with _LiveTensors() as live:
            self()
        return live.peak / 1e6


SETTINGS = {
    "checkpointing": {"checkpointing": True},
    "bf16": {"precision": "bf16"},
    "accumulate 4": {"parts": 4},
    "checkpointing, bf16": {"checkpointing": True, "precision": "bf16"},
    "compiled": {"compiled": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step(benchmark, name):
    plain, other = Step(), Step(**SETTINGS[name])
    began = time.perf_counter()
    other()
    first = time.perf_counter() - began
    times: dict[str, list[float]] = {"plain": [], "other": []}

    def both() -> None:
        times["plain"].append(plain.seconds())
        times["other"].append(other.seconds())

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    ratios = [b / a for a, b in zip(times["plain"][1:], times["other"][1:], strict=True)]
    memory = None if name == "compiled" else (plain.peak_mb(), other.peak_mb())
    plain_seconds = median(times["plain"][1:])
    benchmark.extra_info.update(
        ratio=median(ratios), memory_mb=memory, first_seconds=first, plain_seconds=plain_seconds
    )
    print(f"\n{name}: time ×{median(ratios):.2f} of {plain_seconds:.2f} s, first {first:.1f} s, MB {memory}")
