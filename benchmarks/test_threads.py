"""How long GNU's OpenMP has threads wait for one another before they sleep: `aptp`'s own setting, and others.

Each setting needs a process of its own. They take turns; figures are medians over rounds of the time of a call and of a
forward and backward pass of the embedded U-Net, batch 8, and ratios to `aptp`'s setting in the same round.
`pytest benchmarks/test_threads.py --benchmark-only -s`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

from aptp.cli import SPINS

ROUNDS = 5
SETTINGS = {
    "aptp's": {"GOMP_SPINCOUNT": SPINS},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OpenMP's own": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
CALLS = """
import json, time
from statistics import median
import torch
from aptp.models import load_pipeline

unet = load_pipeline("tiny", torch.device("cpu")).unet
text = torch.randn(8, 32, unet.config.cross_attention_dim)

def seconds(learns):
    unet.requires_grad_(learns)
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        output = unet(torch.randn(8, 4, 16, 16), 10, encoder_hidden_states=text).sample
        if learns:
            output.square().mean().backward()
        times.append(time.perf_counter() - begun)
    return median(times[2:])

print(json.dumps([seconds(False), seconds(True)]))
"""


def seconds(setting: dict[str, str]) -> list[float]:
    """Of a call and of a step, in a process of that setting."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", CALLS], env=plain | setting, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_threads_that_wait(benchmark) -> None:
    rounds: list[dict[str, list[float]]] = []
    benchmark.pedantic(
        lambda: rounds.append({name: seconds(setting) for name, setting in SETTINGS.items()}), rounds=ROUNDS
    )
    for name in SETTINGS:
        ratios = [median(row[name][i] / row["aptp's"][i] for row in rounds) for i in range(2)]
        times = [1000 * median(row[name][i] for row in rounds) for i in range(2)]
        benchmark.extra_info[name] = {"milliseconds": times, "ratios": ratios}
        print(f"\n{name}: call {times[0]:.0f} ms ({ratios[0]:.2f}), step {times[1]:.0f} ms ({ratios[1]:.2f})")
