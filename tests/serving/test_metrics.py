"""What Prometheus reads of a monitor."""

from __future__ import annotations

import math

from aptp.monitor import Monitor
from aptp.routing import Route
from aptp.serving.metrics import Metrics


def figures(metrics: Metrics) -> dict[str, float]:
    lines = [line.split() for line in metrics.page().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines if "{" not in name}


def test_the_budget_is_watched() -> None:
    metrics, monitor = Metrics(), Monitor(2, 0.5)
    metrics.watch(monitor)
    before = figures(metrics)
    assert (before["aptp_budget"], before["aptp_alarms"]) == (0.5, 0)
    assert math.isnan(before["aptp_traffic_cost"])
    monitor.observe([Route("a star", 1, 0.8, 0.1)] * 200)
    after = figures(metrics)
    assert abs(after["aptp_traffic_cost"] - 0.8) < 1e-9
    assert after["aptp_alarms"] == 1
    assert math.isnan(after["aptp_traffic_far"])  # no embeddings were seen
