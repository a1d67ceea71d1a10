"""How soon the command line is there, without torch; the aim for help and the list of plugins is half a second.

The smoke preset is to take the whole path in at most 20 seconds where its data is encoded already.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median

import pytest

TARGET_SECONDS = 0.5
ROUNDS = 7
SMOKE_SECONDS = 20.0
SMOKE_ROUNDS = 5


def cpu_seconds() -> float:
    """Of all child processes so far: on a busy machine it tells the program's own share of the wall time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(benchmark, arguments: Callable[[], Sequence[str]], rounds: int, target: float) -> None:
    """Report the median wall time of the command, after one call that warms up, with its CPU time and the aim."""
    times: list[float] = []
    cpu: list[float] = []

    def start() -> None:
        begun, before = time.perf_counter(), cpu_seconds()
        subprocess.run([sys.executable, "-m", "aptp", *arguments()], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
        cpu.append(cpu_seconds() - before)

    benchmark.pedantic(start, rounds=rounds, warmup_rounds=1)
    seconds = median(times[1:])
    benchmark.extra_info.update(
        seconds=seconds, cpu_seconds=median(cpu[1:]), ratio=seconds / target, target=target, all_seconds=times[1:]
    )
    print(f"\n{seconds:.2f} s, aim {target} s at most")


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"]], ids=" ".join)
def test_start(benchmark, arguments):
    timed(benchmark, lambda: arguments, ROUNDS, TARGET_SECONDS)
    program = (
        "import sys; from aptp.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: main()\n"
        "finally: print({'torch', 'diffusers', 'transformers'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip().endswith("set()"), done.stderr


def test_smoke(benchmark, tmp_path):
    runs = count()
    timed(
        benchmark,
        lambda: ["run", "--preset", "smoke", "--out", str(tmp_path / str(next(runs)))],
        SMOKE_ROUNDS,
        SMOKE_SECONDS,
    )
