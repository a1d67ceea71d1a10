"""The command line is there at once: help and the list of plugins within half a second, without torch."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from statistics import median

import pytest

TARGET_SECONDS = 0.5
ROUNDS = 7


def cpu_seconds() -> float:
    """Of all child processes so far: on a busy machine it tells the program's own share of the wall time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"]], ids=" ".join)
def test_start(benchmark, arguments):
    times: list[float] = []
    before = cpu_seconds()

    def start() -> None:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "aptp", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)

    benchmark.pedantic(start, rounds=ROUNDS, warmup_rounds=1)
    seconds, cpu = median(times[1:]), (cpu_seconds() - before) / len(times)
    benchmark.extra_info.update(seconds=seconds, cpu_seconds=cpu, ratio=seconds / TARGET_SECONDS, target=TARGET_SECONDS)
    program = (
        "import sys; from aptp.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: main()\n"
        "finally: print({'torch', 'diffusers', 'transformers'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip().endswith("set()"), done.stderr
    assert seconds <= TARGET_SECONDS
