"""What a server tells Prometheus."""

from __future__ import annotations

import math

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from aptp.monitor import Monitor

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.info = Info("aptp", "Model and revision that are served.", registry=registry)
        self.requests = Counter(
            "aptp_requests",
            "Requests for pictures by HTTP status; 499: it left.",
            ["status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "aptp_request_seconds", "From a request to its answer.", buckets=SECONDS, registry=registry
        )
        self.taken = Gauge("aptp_taken_pictures", "Pictures taken and not yet answered.", registry=registry)
        self.waiting = Gauge("aptp_waiting_pictures", "Pictures that wait to be drawn.", registry=registry)
        self.batch = Histogram(
            "aptp_batch_pictures", "Pictures of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.draw_seconds = Histogram(
            "aptp_draw_seconds", "Drawing of a batch.", ["expert"], buckets=SECONDS, registry=registry
        )
        self.pictures = Counter("aptp_pictures", "Pictures drawn.", ["expert"], registry=registry)
        self.cost = Counter(
            "aptp_cost", "Sum of the costs of pictures drawn, each a fraction of the dense one's.", registry=registry
        )

        self.flagged = Counter("aptp_flagged_pictures", "Pictures that the safety checker hid.", registry=registry)

    def watch(self, monitor: Monitor) -> None:
        """Tell what a monitor sees, too; NaN while it has seen too few prompts."""

        def mean_of(figure: str) -> float:
            seen = getattr(monitor.report(), figure)
            return seen.mean if seen else math.nan

        for name, what, read in (
            ("aptp_budget", "What the average prompt is to cost, of dense.", lambda: monitor.budget),
            ("aptp_traffic_cost", "What the last prompts' experts cost on average, of dense.", lambda: mean_of("cost")),
            ("aptp_traffic_far", "Share of the last prompts far from all training prompts.", lambda: mean_of("far")),
            ("aptp_alarms", "What no longer holds, of budget and traffic.", lambda: len(monitor.report().alarms)),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
