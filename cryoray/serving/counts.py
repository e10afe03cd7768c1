"""What the ingress counts, in Prometheus' words."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cryoray.records import VERDICTS
from cryoray.serving.replica import Judged
from cryoray.serving.sources import Chosen

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Counts:
    """Counters of one ingress, in a registry of their own.

    Attributes:
        registry: for ``prometheus_client.generate_latest``.
        requests: answered requests by status.
        waiting: requests being worked on now.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cryoray_requests", "Answered requests", ["status"], registry=self.registry
        )
        self.waiting = 0
        self._in_flight = Gauge(
            "cryoray_requests_in_flight", "Requests being worked on", registry=self.registry
        )
        self._seconds = Histogram(
            "cryoray_request_seconds",
            "From a request's admission to its answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._images = Counter(
            "cryoray_images",
            "Images by what became of them",
            ["ensemble", "verdict"],
            registry=self.registry,
        )
        self._disagreements = Counter(
            "cryoray_disagreements",
            "Images about which d3 was asked",
            ["ensemble"],
            registry=self.registry,
        )

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """While a request is worked on."""
        self.waiting += 1
        try:
            with self._in_flight.track_inprogress(), self._seconds.time():
                yield
        finally:
            self.waiting -= 1

    def count(self, ensemble: str, chosen: Chosen, judged: Sequence[Judged]) -> None:
        """Count the images of one answer."""
        tally: Tally[str] = Tally()
        for part in judged:
            tally.update(part.judgement.verdict.tolist())
            tally["quarantined"] += len(part.quarantined)
            asked = int(np.count_nonzero(~np.isnan(part.judgement.d3)))
            self._disagreements.labels(ensemble).inc(asked)
        tally["quarantined"] += len(chosen.quarantined)
        for verdict in (*VERDICTS, "quarantined"):
            self._images.labels(ensemble, verdict).inc(tally[verdict])
