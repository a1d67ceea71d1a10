"""What serving through the routed pipeline costs beside its experts alone, and what it saves of the dense pipeline.

Times are CPU seconds of one thread, arms take turns within a round, figures are medians over rounds: other work on the
machine moves them little. Runs are real ones of the preset `smoke`, whose experts are untrained for all practical
purposes; their costs, their shares of the traffic and their shapes are what a search leaves.
`pytest benchmarks/test_pipeline.py --benchmark-only -s`
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import pytest
import torch
from diffusers import UNet2DConditionModel

import aptp
from aptp.pipeline import RoutedPipeline
from aptp.routing import DENSE

BATCH, TRAFFIC, STEPS, SERVED_STEPS, ROUNDS = 16, 64, 4, 25, 3
AIMS = {"of the ideal": "0.95 at least", "saved time / saved MACs": "0.65 at least", "router's share": "0.02 at most"}
ROUTER_SHARE_LARGE = "0.002 at most"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_run(folder: Path, experts: int, budget: float) -> Path:
    command = [sys.executable, "-m", "aptp", "run", "--preset", "smoke", "--out", str(folder / "run")]
    command += ["--experts", str(experts), "--budget", str(budget), "--set", f"prepare.validation={TRAFFIC}"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "run"


def traffic(run: Path) -> list[str]:
    """The held-out captions of a run."""
    lines = (run / "data/validation.jsonl").read_text().splitlines()
    return [json.loads(line)["caption"] for line in lines][:TRAFFIC]


class Clock:
    """CPU seconds of a pipeline's denoisers, and of the rest of a call."""

    def __init__(self, pipe: RoutedPipeline) -> None:
        self.pipe, self.denoiser, self.rest = pipe, 0.0, 0.0
        for index in range(DENSE, len(pipe.bundle.fractions)):
            pipe.expert(index).register_forward_pre_hook(self._start)
            pipe.expert(index).register_forward_hook(self._stop)

    def _start(self, *_) -> None:
        self.denoiser -= time.process_time()

    def _stop(self, *_) -> None:
        self.denoiser += time.process_time()

    def draw(self, prompts: list[str], **options) -> tuple[float, float]:
        """Seconds a picture, of the denoiser and of the rest."""
        self.denoiser, start = 0.0, time.process_time()
        self.pipe(prompts, num_inference_steps=STEPS, **options)
        rest = time.process_time() - start - self.denoiser
        return self.denoiser / len(prompts), rest / len(prompts)


def rounds(benchmark, arms: dict[str, Callable], count: int = ROUNDS) -> dict[str, list]:
    """What each arm answers in each round but the first, which warms up."""
    answers: dict[str, list] = {name: [] for name in arms}

    def one() -> None:
        for name, arm in arms.items():
            answers[name].append(arm())

    benchmark.pedantic(one, rounds=count, warmup_rounds=1)
    return {name: found[1:] for name, found in answers.items()}


def savings(found: dict[str, list], shares: Mapping[int, int], fractions: Sequence[float]) -> dict[str, object]:
    """What the rounds say of routed traffic, as ratios within a round.

    Args:
        found: seconds a picture, of the denoiser and of the rest, of the arms `routed`, `dense`, `one by one` and
            `expert N` for each that serves; those of `router` alone.
        shares: prompts of each expert that serves.
        fractions: costs of the experts as fractions of dense.
    """
    traffic = sum(shares.values())

    def ratio(of: Callable[[int], float]) -> float:
        return median(of(place) for place in range(ROUNDS))

    def served(name: str, place: int) -> float:
        """Seconds a picture of the whole pipeline at the steps that are usual."""
        denoiser, rest = found[name][place]
        return denoiser * SERVED_STEPS / STEPS + rest

    def ideal(place: int) -> float:
        return sum(count * found[f"expert {index}"][place][0] for index, count in shares.items()) / traffic

    cost = sum(count * fractions[index] for index, count in shares.items()) / traffic
    time_of = ratio(lambda place: found["routed"][place][0] / found["dense"][place][0])
    alone = ratio(lambda place: ideal(place) / found["dense"][place][0])
    return {
        "cost": cost,
        "experts": {index: (round(fractions[index], 3), count) for index, count in sorted(shares.items())},
        "of the ideal": ratio(lambda place: ideal(place) / found["routed"][place][0]),
        "over dense, denoiser": 1 / time_of,
        "over dense, whole": ratio(lambda place: served("dense", place) / served("routed", place)),
        "over one by one, denoiser": ratio(lambda place: found["one by one"][place][0] / found["routed"][place][0]),
        "over one by one, whole": ratio(lambda place: served("one by one", place) / served("routed", place)),
        "saved time / saved MACs": (1 - time_of) / (1 - cost),
        "saved time / saved MACs, full batches": (1 - alone) / (1 - cost),
        "router's share": ratio(lambda place: found["router"][place] / served("routed", place)),
    }


@pytest.mark.parametrize("budget", [0.66, 0.5])
def test_mixed_traffic(benchmark, tmp_path, budget):
    run = make_run(tmp_path, 4, budget)
    pipe, prompts = aptp.load(run, device="cpu"), traffic(run)
    clock = Clock(pipe)
    routes = pipe.route(prompts)
    shares = Counter(route.expert for route in routes)
    arms = {"routed": lambda: clock.draw(prompts, batch_size=BATCH)}
    arms |= {
        f"expert {index}": lambda index=index: clock.draw(prompts[:BATCH], experts=[index] * BATCH) for index in shares
    }
    arms |= {
        "dense": lambda: clock.draw(prompts[: 2 * BATCH], dense=True, batch_size=BATCH),
        "one by one": lambda: clock.draw(prompts[::4], experts=[route.expert for route in routes[::4]], batch_size=1),
        "router": lambda: timed(lambda: pipe.route(prompts[:BATCH])) / BATCH,
    }
    found = rounds(benchmark, arms)

    figures = savings(found, shares, pipe.bundle.fractions)
    benchmark.extra_info.update(figures, aims=AIMS)
    print(f"\nbudget {budget}, aims {AIMS}: {json.dumps(figures, indent=1)}")


def timed(call: Callable) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def sd_shaped(share: int, device: str) -> UNet2DConditionModel:
    """Stable Diffusion 2.1's U-Net at a share of its width."""
    widths = [width // share for width in (320, 640, 1280, 1280)]
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=widths,
            attention_head_dim=[width // 64 for width in widths],
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def test_router_beside_a_large_denoiser(benchmark, tmp_path):
    """Stable Diffusion 2.1 at 32 × 32 latents: a call of its U-Net at a fifth of the width, times the ratio of MACs."""
    run = make_run(tmp_path, 4, 0.66)
    pipe, prompts = aptp.load(run, device="cpu"), traffic(run)
    unet, whole = sd_shaped(5, "cpu"), sd_shaped(1, "meta")
    larger = (
        aptp.cost_model(whole, aptp.search_space(whole)).dense / aptp.cost_model(unet, aptp.search_space(unet)).dense
    )
    sample, text = torch.randn(4, 4, 32, 32), torch.randn(4, 77, 1024)
    arms = {
        "router": lambda: timed(lambda: pipe.route(prompts[:BATCH])),
        "denoiser": lambda: timed(lambda: unet(sample, 500, text)) / len(sample) * larger,
    }
    found = rounds(benchmark, arms)
    calls = SERVED_STEPS * BATCH * 2  # classifier-free guidance
    share = median(r / (calls * d) for r, d in zip(found["router"], found["denoiser"], strict=True))
    benchmark.extra_info.update(share=share, larger=larger, **{name: median(times) for name, times in found.items()})
    print(
        f"\nrouter's share beside an SD-sized denoiser: {share:.6f}, aim {ROUTER_SHARE_LARGE}; {benchmark.extra_info}"
    )


LOADING = """
import json, resource, sys, time
import torch, aptp, diffusers, transformers
torch.set_num_threads(1)
def timed(call):
    start = time.process_time()
    value = call()
    return value, time.process_time() - start
pipe, load = timed(lambda: aptp.load(sys.argv[1], device="cpu", lazy=sys.argv[2] == "lazy"))
draw = lambda expert: pipe("a red star", experts=[expert], num_inference_steps=1)
draw(-1)
_, first = timed(lambda: draw(0))
_, second = timed(lambda: draw(0))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
json.dump({"load": load, "first": first, "second": second, "peak_mb": peak}, sys.stdout)
"""


def test_lazily_and_eagerly(benchmark, tmp_path):
    """Eight experts. CPU seconds and peak resident memory of a process that loads the pipeline and draws a picture."""
    run = make_run(tmp_path, 8, 0.66)
    arms = {
        name: lambda name=name: json.loads(
            subprocess.run([sys.executable, "-c", LOADING, str(run), name], check=True, capture_output=True).stdout
        )
        for name in ("lazy", "eager")
    }
    found = rounds(benchmark, arms, 2)
    figures = {
        name: {what: median(answer[what] for answer in answers) for what in answers[0]}
        for name, answers in found.items()
    }
    each = (figures["eager"]["load"] - figures["lazy"]["load"]) / 8
    figures["first lazy picture, in experts read"] = (figures["lazy"]["first"] - figures["lazy"]["second"]) / each
    benchmark.extra_info.update(figures)
    print(f"\n{json.dumps(figures, indent=1)}")
