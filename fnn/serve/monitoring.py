"""What Prometheus reads of a server: requests, times, batches, the queue, and drift of inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from fnn.serve.watching import Watch

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2, 4, 8, 16)


class Monitor:
    """The meters of one app, in a registry of its own.

    - `rows`: the sizes of batches, the upper ends of a histogram's buckets.
    - `queue`: tells how many requests wait.
    - `watch`: the recent inputs; None if there is nothing to compare them with.
    """

    def __init__(self, rows: tuple[int, ...], queue: Callable[[], int], watch: Watch | None):
        try:
            import prometheus_client
        except ImportError:
            raise ImportError(
                "fnn.serve needs prometheus_client: pip install 'fnn[serve]'"
            ) from None
        self.library, self.watch = prometheus_client, watch
        self.registry = registry = prometheus_client.CollectorRegistry()
        requests = prometheus_client.Counter(
            "fnn_requests", "Requests answered.", ("path", "status"), registry=registry
        )
        self.left = prometheus_client.Counter(
            "fnn_clients_left", "Requests whose client left before the answer.", registry=registry
        )
        seconds = prometheus_client.Histogram(
            "fnn_request_seconds",
            "Time from the headers of a request to its answer.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_rows = prometheus_client.Histogram(
            "fnn_batch_rows", "Examples in a batch.", buckets=rows, registry=registry
        )
        self.batch_seconds = prometheus_client.Histogram(
            "fnn_batch_seconds", "Time of the program.", buckets=SECONDS, registry=registry
        )
        # cached, since every request looks for its meters
        self.requests_of = functools.cache(requests.labels)
        self.seconds_of = functools.cache(seconds.labels)
        waiting = prometheus_client.Gauge(
            "fnn_queue_length", "Examples that wait.", registry=registry
        )
        waiting.set_function(queue)
        if watch:
            registry.register(Drift(watch))  # type: ignore

    @property
    def kind(self) -> str:
        return self.library.CONTENT_TYPE_LATEST

    def page(self) -> bytes:
        """All meters, as text."""
        return self.library.generate_latest(self.registry)


class Drift:
    """A collector of what a watch finds, computed when it is asked for."""

    def __init__(self, watch: Watch):
        from prometheus_client.core import GaugeMetricFamily

        self.watch, self.family = watch, GaugeMetricFamily

    def describe(self) -> list:
        return []

    def collect(self) -> Iterator[Any]:
        family = self.family
        labels = ("input", "feature")
        psi = family("fnn_input_psi", "Population stability index of recent inputs.", labels=labels)
        shift = family(
            "fnn_input_mean_shift", "|mean - mean at training| / std at training.", labels=labels
        )
        for name, found in self.watch.drift().items():
            for feature, values in enumerate(zip(found.psi, found.shift, strict=True)):
                for meter, value in zip((psi, shift), values, strict=True):
                    meter.add_metric((name, str(feature)), float(value))
        yield psi
        yield shift
        yield family("fnn_input_window", "Recent examples compared.", value=self.watch.rows)
