"""The U-Net of Stable Diffusion 2.1 in its full size: gated, counted, sliced and searched on a small machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/full_size.py"
NEEDED, ALLOWED = 8, 20  # GB


@pytest.mark.slow
def test_a_full_size_u_net_is_gated_counted_sliced_and_searched() -> None:
    if psutil.virtual_memory().available < NEEDED * 1e9:
        pytest.skip(f"it takes {NEEDED} GB of memory, which are not free")
    command = [sys.executable, SCRIPT, "--size", "32", "--steps", "1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = [float(row.split("|")[-2]) for row in done.stdout.splitlines()[2:] if row.startswith("|")]
    error, cost = re.search(r"masked against sliced: (\S+);.* calibrated: (\S+)", done.stdout).groups()
    assert len(peaks) == 7
    assert 3.4 < max(peaks) < ALLOWED  # the weights alone are 3.46 GB
    assert float(error) < 1e-5
    assert float(cost) == pytest.approx(0.66, rel=0.02)
