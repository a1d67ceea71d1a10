"""What a server tells Prometheus."""

from __future__ import annotations

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

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
