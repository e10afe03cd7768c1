"""What the service measures, in Prometheus' words, all in one place.

Preparers and judges send the seconds that they took along with their results, and the ingress counts them
when it answers. So one address has everything, each image once, with this service's own rules of access;
and it is there without Ray's dashboard, whose metrics port asks for no token. Ray's own metrics of
replicas, queues and nodes stay where Ray puts them. Where there are several ingresses, each answers for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cryoray.records import Verdicts
from cryoray.serving.judging import JudgedRange

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
#: Seconds that the metrics wait for what others hold.
_PATIENCE = 1.0
_FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Counts:
    """Counters of one ingress, in a registry of their own.

    Args:
        batch: images that are judged together at most.

    Attributes:
        registry: for ``prometheus_client.generate_latest``.
        requests: answered requests by status.
        waiting: requests being worked on now.
        stages: seconds by stage: plan, wait (for a preparer or judge, and on the way), prepare, judge
            (a batch), answer.
        lost: ranges that were asked about again because a replica was lost.
        queued: images that are not judged yet, by ensemble.
        shadow_images: by the verdict of the active ensemble and that of the shadow.
        shadow_skipped: images that the shadow had no time for.
        shadow_failed: images that the shadow failed to judge.
        present: requests of any sort that are not answered yet, but for health and metrics.
        draining: whether the service is being stopped, so that no more are taken.
        others: what the other ingresses have counted, as `collected` there.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.registry = of = CollectorRegistry()
        self.requests = Counter("cryoray_requests", "Answered requests", ["status"], registry=of)
        self.waiting = self.present = 0
        self.draining = False
        self.others: Sequence[Sequence[Metric]] = ()
        self._own = _Slow()
        self._in_flight = Gauge(
            "cryoray_requests_in_flight", "Requests being worked on", registry=of
        )
        self._seconds = Histogram(
            "cryoray_request_seconds",
            "From a request's admission to its answer",
            buckets=_SECONDS,
            registry=of,
        )
        self.stages = Histogram(
            "cryoray_stage_seconds",
            "Seconds by stage: plan, wait, prepare, judge, answer",
            ["stage"],
            buckets=_SECONDS,
            registry=of,
        )
        self._fill = Histogram(
            "cryoray_batch_fill",
            "Images judged together, as a fraction of the most",
            buckets=_FILL,
            registry=of,
        )
        self.queued = Gauge(
            "cryoray_queued_images", "Images not judged yet", ["ensemble"], registry=of
        )
        self._images = Counter(
            "cryoray_images",
            "Images by what became of them",
            ["ensemble", "verdict"],
            registry=of,
        )
        self._disagreements = Counter(
            "cryoray_disagreements",
            "Images that d3 judged because d1 and d2 disagreed",
            ["ensemble"],
            registry=of,
        )
        self._kept = Gauge(
            "cryoray_keep_rate",
            "Fraction kept of the images that an ensemble judged, lately",
            ["ensemble"],
            registry=of,
        )
        self._disagreed = Gauge(
            "cryoray_disagreement_rate",
            "Fraction on which d1 and d2 disagreed, lately",
            ["ensemble"],
            registry=of,
        )
        self._rates: dict[str, tuple[float, float]] = {}
        self.lost = Counter("cryoray_replicas_lost", "Ranges whose replica was lost", registry=of)
        self.shadow_images = Counter(
            "cryoray_shadow_images",
            "Images by the verdict of the active ensemble and that of the shadow",
            ["ensemble", "active", "shadow"],
            registry=of,
        )
        self.shadow_skipped = Counter(
            "cryoray_shadow_skipped", "Images that the shadow had no time for", registry=of
        )
        self.shadow_failed = Counter(
            "cryoray_shadow_failed", "Images that the shadow failed to judge", registry=of
        )

    def also(self, collector: Collector) -> None:
        """Show what a collector finds out each time, if it does so soon, as it is at every ingress."""
        self._own.collectors.append(collector)

    def collected(self) -> list[Metric]:
        """What this ingress has counted."""
        return list(self.registry.collect())

    def text(self) -> bytes:
        """What all ingresses have counted, for Prometheus."""
        together = merged([self.collected(), *self.others])
        return generate_latest(_Given([*together, *self._own.collect()]))

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """While a request is worked on."""
        self.waiting += 1
        try:
            with self._in_flight.track_inprogress(), self._seconds.time():
                yield
        finally:
            self.waiting -= 1

    @contextmanager
    def here(self) -> Iterator[None]:
        """While a request of any sort is not answered yet."""
        self.present += 1
        try:
            yield
        finally:
            self.present -= 1

    def measured(self, part: JudgedRange, elapsed: float) -> None:
        """Count the stages of one range, which took so many seconds in all."""
        self.stages.labels("prepare").observe(part.prepare_seconds)
        if part.batch:
            self.stages.labels("judge").observe(part.judge_seconds)
            self._fill.observe(part.batch / self._batch)
        waited = elapsed - part.prepare_seconds - part.judge_seconds
        self.stages.labels("wait").observe(max(0.0, waited))

    def count(self, ensemble: str, answer: Verdicts) -> None:
        """Count the images of one answer."""
        counts = answer.counts()
        asked = int(np.count_nonzero(~np.isnan(answer.d3)))
        self._disagreements.labels(ensemble).inc(asked)
        for fate, images in counts.items():
            self._images.labels(ensemble, fate).inc(images)
        judged = sum(answer.verdict_counts().values())
        if judged:
            self._lately(ensemble, judged, counts["keep"] / judged, asked / judged)

    def _lately(self, ensemble: str, images: int, kept: float, disagreed: float) -> None:
        """Rates that forget: an image weighs half as much when ten thousand others have come."""
        before = self._rates.get(ensemble, (kept, disagreed))
        old = 0.5 ** (images / 10_000)
        now = (
            old * before[0] + (1 - old) * kept,
            old * before[1] + (1 - old) * disagreed,
        )
        self._rates[ensemble] = now
        self._kept.labels(ensemble).set(now[0])
        self._disagreed.labels(ensemble).set(now[1])


def merged(parts: Sequence[Sequence[Metric]]) -> list[Metric]:
    """The sums over several ingresses; of what is a rate already, the mean."""
    families: dict[str, Metric] = {}
    values: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
    for family in (one for part in parts for one in part):
        families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = tuple(sorted(sample.labels.items()))
                values[family.name, sample.name, labels].append(sample.value)
    for (of, name, labels), found in values.items():
        total = sum(found)
        value = total / len(found) if of.endswith("_rate") else total
        families[of].add_sample(name, dict(labels), value)
    return list(families.values())


class _Given(CollectorRegistry):
    """What is there already, for `generate_latest`."""

    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


class _Slow:
    """Collectors that may have to wait, for a ledger that somebody has locked: then the last known."""

    def __init__(self) -> None:
        self.collectors: list[Collector] = []
        self._thread = ThreadPoolExecutor(1, "collectors")
        self._under_way: Future[list[Metric]] | None = None
        self._known: list[Metric] = []

    def collect(self) -> list[Metric]:
        if self._under_way is None:
            self._under_way = self._thread.submit(self._ask)
        try:
            self._known = self._under_way.result(_PATIENCE)
        except TimeoutError:
            return self._known
        except Exception:  # a ledger that cannot be had now
            self._known = []
        self._under_way = None
        return self._known

    def _ask(self) -> list[Metric]:
        return [family for one in self.collectors for family in one.collect()]
