"""A whole server under load: `benchmarks/serving.py`, with fewer requests."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.slow
def test_everyone_gets_their_own_picture_and_nothing_is_left_behind(finished) -> None:
    measure = runpy.run_path(str(SCRIPT))["measure"]
    figures = measure(finished.out, requests=90, clients=2, rounds=3, steps=2, batch=8)
    _, second, third = figures["rounds"]
    assert third["open_files"] <= second["open_files"]
    assert third["resident_mb"] < 1.05 * second["resident_mb"]
    assert third["mean_batch"] > 2
