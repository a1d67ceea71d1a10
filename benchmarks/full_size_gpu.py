"""Stable Diffusion 2.1 at full size on a GPU, of random weights: what experts save in service, and what time costs.

    python benchmarks/full_size_gpu.py [serve] [latency] [align] [cache] [--size 64] [--dtype bf16]

serve: 64 prompts of four experts through the routed pipeline, beside its experts alone, one prompt at a time, and the
dense pipeline; latency: the table of the budget `latency` against whole sliced models; align: what widths in multiples
gain; cache: a search step that reads encoded rows beside one that encodes them. Every figure is of wall time, medians
of rounds in which the arms take turns, and JSON. Experts are drawn at random at their costs: nothing here says how good
they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from test_cache import Uncached, narrow_sd21, photographs, read, step_of, workspace
from test_pipeline import BATCH, ROUNDS, STEPS, savings
from torch import nn
from transformers import BertConfig, BertModel

import aptp
from aptp.api import denoiser_of
from aptp.core.architecture import Architecture, SearchSpace, harden
from aptp.core.budget import CostModel
from aptp.core.calibration import calibrate
from aptp.core.timing import latencies_ms, repeated
from aptp.pipeline import RoutedPipeline
from aptp.plugins.budgets.latency import LatencyBudget
from aptp.routing import DENSE

BUDGETS, SPREAD, SHARES = (0.66, 0.5), (-0.2, -0.05, 0.1, 0.25), (24, 18, 14, 8)
"""Costs of the experts lie so far from the budget, and so many of the prompts go to each."""
ALIGN = (1, 8, 16, 32)
KEEP = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def settled() -> float:
    """This moment, when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable[[], Any]) -> float:
    start = settled()
    call()
    return settled() - start


def rounds(arms: Mapping[str, Callable[[], Any]]) -> dict[str, list]:
    """What each arm answers in each round but the first, which warms up."""
    answers: dict[str, list] = {name: [] for name in arms}
    for _ in range(ROUNDS + 1):
        for name, arm in arms.items():
            answers[name].append(arm())
    return {name: found[1:] for name, found in answers.items()}


def drawn(space: SearchSpace, costs: CostModel, target: float, seed: int) -> Architecture:
    """An architecture of a cost, of all blocks and of units at random."""
    scores = torch.rand(space.num_gates, generator=torch.Generator().manual_seed(seed))
    soft = torch.where(space.width_gates, scores, 1.0)
    return Architecture(space, harden(space, soft, calibrate(costs, soft[None], torch.ones(1), target)))


def pipeline(asked: argparse.Namespace) -> Any:
    """The whole of it: text encoder, autoencoder and U-Net at their published sizes."""
    with torch.device(asked.device):
        pipe = narrow_sd21(asked.part)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # its tables belong on the CPU
    pipe.unet.register_to_config(sample_size=asked.size)
    pipe.to(asked.device, TYPES[asked.dtype])
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Clock:
    """Seconds a picture of a pipeline's denoisers, and of the rest of a call."""

    def __init__(self, pipe: RoutedPipeline) -> None:
        self.pipe, self.denoiser = pipe, 0.0
        for index in range(DENSE, len(SHARES)):
            pipe.expert(index).register_forward_pre_hook(self._start)
            pipe.expert(index).register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.denoiser -= settled()

    def _stop(self, *_: Any) -> None:
        self.denoiser += settled()

    def draw(self, experts: list[int], batch_size: int = BATCH) -> tuple[float, float]:
        self.denoiser = 0.0
        prompts = [f"picture {number} of a street" for number in range(len(experts))]
        whole = seconds(
            lambda: self.pipe(
                prompts, experts=experts, num_inference_steps=STEPS, output_type="pt", batch_size=batch_size
            )
        )
        return self.denoiser / len(experts), (whole - self.denoiser) / len(experts)


def router(device: str) -> Callable[[], Any]:
    """What reads the prompts of a batch: all-MiniLM-L6-v2's shape, in float32 as routing is."""
    with torch.device(device):
        shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        model, text = BertModel(BertConfig(**shape)).eval(), torch.randint(0, 30000, (BATCH, 64))
    return lambda: model(text)


def serve(asked: argparse.Namespace) -> None:
    base = pipeline(asked)
    space = aptp.search_space(base.unet, "width")
    costs, reader = aptp.cost_model(base.unet, space, sample_size=asked.size), router(asked.device)
    for budget in asked.budgets:
        chosen = [drawn(space, costs, budget + apart, seed) for seed, apart in enumerate(SPREAD)]
        experts = [aptp.slice(base.unet, space, architecture) for architecture in chosen]
        fractions = [float(costs.fraction(architecture.gates)) for architecture in chosen]
        bundle = SimpleNamespace(
            component="unet",
            fractions=fractions,
            expert=lambda index, dtype, experts=experts: experts[index],
            encoder=SimpleNamespace(to=lambda device: None),
            call_options={},
        )
        clock = Clock(RoutedPipeline(Path(), bundle, base))
        place = torch.randperm(sum(SHARES), generator=torch.Generator().manual_seed(0))
        mixed = torch.tensor([index for index, count in enumerate(SHARES) for _ in range(count)])[place].tolist()
        arms = {"routed": lambda clock=clock, mixed=mixed: clock.draw(mixed)}
        arms |= {f"expert {i}": lambda i=i, clock=clock: clock.draw([i] * BATCH) for i in range(len(SHARES))}
        arms |= {
            "dense": lambda clock=clock: clock.draw([DENSE] * 2 * BATCH),
            "one by one": lambda clock=clock, mixed=mixed: clock.draw(mixed[::4], 1),
            "router": lambda: seconds(reader) / BATCH,
        }
        with torch.no_grad():
            found = rounds(arms)
        figures = savings(found, dict(enumerate(SHARES)), fractions)
        dense = 1000 * median(denoiser for denoiser, _ in found["dense"]) / STEPS
        told = {"budget": budget, "dense, ms a picture and step": dense, **figures}
        print(json.dumps(told, indent=1), flush=True)


def unet_of(asked: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    unet = pipeline(asked).unet
    return unet, denoiser_of(unet).example_inputs(unet, asked.size, 77)


def latency(asked: argparse.Namespace) -> None:
    unet, inputs = unet_of(asked)
    space = aptp.search_space(unet, blocks="all")
    macs = aptp.cost_model(unet, space, sample_size=asked.size)
    budget = LatencyBudget(LatencyBudget.Options(batch=BATCH))
    costs = budget.profile(denoiser_of(unet), unet, space, inputs)
    chosen = [Architecture.random(space, keep, seed) for seed, keep in enumerate(KEEP)]
    dense, *times = budget.measured([unet, *(aptp.slice(unet, space, one) for one in chosen)], inputs)
    rows = [
        (float(macs.fraction(one.gates)), float(costs.fraction(one.gates)), taken / dense)
        for one, taken in zip(chosen, times, strict=True)
    ]
    errors = [abs(estimated / measured - 1) for _, estimated, measured in rows]
    print(json.dumps({"dense, in the table and measured, ms": (costs.dense, dense), "rows": rows}))
    print(json.dumps({"mean error": fmean(errors), "largest": max(errors)}), flush=True)


def align(asked: argparse.Namespace) -> None:
    unet, inputs = unet_of(asked)
    models: list[nn.Module] = [unet]
    rows = []
    for multiple in ALIGN:
        space = aptp.search_space(unet, "width", align=multiple)
        costs = aptp.cost_model(unet, space, sample_size=asked.size)
        for target in (0.8, 0.65):
            architecture = drawn(space, costs, target, 0)
            models.append(aptp.slice(unet, space, architecture))
            rows.append([multiple, target, round(float(costs.fraction(architecture.gates)), 4)])
    dense, *times = latencies_ms(models, repeated(inputs, 2 * BATCH), 7)
    for row, taken in zip(rows, times, strict=True):
        print(json.dumps([*row, round(taken / dense, 4)]))
    print(json.dumps({"dense, ms": dense}), flush=True)


def cache(asked: argparse.Namespace) -> None:
    """At 256 × 256 pixels, in float32 with computations in bfloat16, as such a run is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        data = {"name": "imagefolder", "path": photographs(folder / "pictures", 2 * BATCH + 8), "validation": 0.2}
        asked = argparse.Namespace(**(vars(asked) | {"size": 32, "dtype": "fp32"}))
        work = workspace(pipeline(asked), folder, data, BATCH, asked.device, asked.precision)
        step, cached = step_of(work), work.train
        uncached = Uncached(**vars(cached), encoder=work.encoder)

        def reading(pictures: Any) -> Callable[[], float]:
            def arm() -> float:
                work.train = pictures
                return seconds(lambda: step(0))

            return arm

        index = torch.randint(0, len(cached), (BATCH,))
        arms = {"cached": reading(cached), "uncached": reading(uncached)}
        found = rounds(arms | {"reading": lambda: seconds(lambda: read(cached, index))})
        told: dict[str, Any] = {name: median(times) for name, times in found.items()}
        told["ratio"] = median(u / c for u, c in zip(found["uncached"], found["cached"], strict=True))
        told["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        print(json.dumps(told), flush=True)


PARTS = {part.__name__: part for part in (serve, latency, align, cache)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--size", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--dtype", choices=TYPES, default="bf16")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the search step")
    parser.add_argument("--part", type=int, default=1, help="of its width take one so many-th: 4, to try it on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    asked = parser.parse_args()
    for part in asked.parts or PARTS:
        start = time.perf_counter()
        PARTS[part](asked)
        print(f"{part}: {time.perf_counter() - start:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
