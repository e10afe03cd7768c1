"""How far an ingestion is, for a person: rows, GB, GB/s, time left, quarantined so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from cryoray.preparation.shards import Part, Shard, Work
from cryoray.records import OnProgress, Progress

#: Seconds before a rate is believed: the first tasks wait for workers to start.
_SETTLED = 1.0


class Meter:
    """Adds up what was done, tells the caller, and Ray's dashboard where there is one.

    Args:
        parts: what is ingested.
        work: all of it.
        done: the shards that an earlier call made.
        name: of the set.
        on_progress: called at once and after every shard.
        clock: seconds.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        work: Sequence[Work],
        done: Sequence[Shard],
        name: str,
        on_progress: OnProgress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._clock = on_progress, clock
        self._total = sum(len(part.plan.wanted) for part in parts)
        self._bytes_total = sum(each.bytes for each in work)
        self._quarantined = sum(len(part.plan.quarantined) for part in parts)
        self._quarantined += sum(shard.quarantined for shard in done)
        self._rows = sum(len(part.plan.quarantined) for part in parts)
        self._rows += sum(shard.images + shard.quarantined for shard in done)
        self._bytes = self._found = sum(shard.bytes for shard in done)
        self._began = clock()
        self._first: float | None = None
        self._name = name
        self._metrics: dict[str, Any] = {}
        self._say()

    def add(self, shard: Shard) -> None:
        """Count a shard that was made now."""
        self._rows += shard.images + shard.quarantined
        self._bytes += shard.bytes
        self._quarantined += shard.quarantined
        self._say()
        self._count(shard)

    def _say(self) -> None:
        self._tell(Progress("prepare", self._rows, self._total, note=self.note()))

    def note(self) -> str:
        """``3.2 of 10.4 GB, 1.05 GB/s, 7 s left, 12 quarantined``."""
        note = [f"{self._bytes / 1e9:.1f} of {self._bytes_total / 1e9:.1f} GB"]
        seconds, made = self._clock() - self._began, self._bytes - self._found
        if made and seconds >= _SETTLED:
            rate = made / seconds
            left = (self._bytes_total - self._bytes) / rate
            note += [f"{rate / 1e9:.2f} GB/s", f"{duration(left)} left"]
        if self._quarantined:
            note.append(f"{self._quarantined:,} quarantined")
        return ", ".join(note)

    def _count(self, shard: Shard) -> None:
        """The same as counters of Ray, if it runs: ``ray_cryoray_ingest_rows_total`` and so on."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        from ray.util.metrics import Counter

        counted = {
            "rows": (shard.images + shard.quarantined, "rows prepared or quarantined"),
            "bytes": (shard.bytes, "raw bytes read"),
            "quarantined": (shard.quarantined, "rows that could not be used"),
        }
        for what, (more, description) in counted.items():
            if what not in self._metrics:
                self._metrics[what] = Counter(
                    f"cryoray_ingest_{what}", description=description, tag_keys=("set",)
                )
            if more:
                self._metrics[what].inc(more, {"set": self._name})


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
