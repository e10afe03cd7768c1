"""What a person is told of an ingestion: numbers that add up, and a time that follows the rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util import metrics

from cryoray.engine.meter import Meter, duration
from cryoray.preparation.plan import plan
from cryoray.preparation.shards import Part, Shard, divide
from cryoray.records import Progress
from cryoray.settings import IngestSettings, PreparationSettings, RuntimeSettings
from tests.preparation.sources import particles, write_source

SETTINGS = IngestSettings(preparation=PreparationSettings(box=32, contrast="bright"), range_mib=1)


def parts_of(folder: Path) -> list[Part]:
    """Two stacks of 100 images, 1.6 MB each, and a row that is there twice."""
    extra = ("000001@a.mrcs m 1 1 1 4",)
    source = write_source(folder, [particles(100, 64), particles(100, 64, seed=1)], extra=extra)
    return [Part(plan(source, SETTINGS.preparation, 1), "x", np.full(201, -1, np.int8), None)]


def test_rows_bytes_rate_time_and_quarantined_are_told(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    work = divide(parts, tmp_path / "set", SETTINGS)
    now = [0.0]
    told: list[Progress] = []
    meter = Meter(parts, work, [], "set", told.append, clock=lambda: now[0])
    assert told == [Progress("prepare", 1, 201, note="0.0 of 0.0 GB, 1 quarantined")]
    now[0] = 4.0
    meter.add(Shard(0, "", 97, 3, work[0].bytes))
    assert (told[-1].done, told[-1].total) == (101, 201)
    assert told[-1].note == "0.0 of 0.0 GB, 0.00 GB/s, 4 s left, 4 quarantined"


def test_what_an_earlier_call_did_counts_as_done_and_not_as_speed(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    work = divide(parts, tmp_path / "set", SETTINGS)
    now = [0.0]
    done = [Shard(0, "", 100, 0, work[0].bytes)]
    told: list[Progress] = []
    meter = Meter(parts, work, done, "set", told.append, clock=lambda: now[0])
    assert told[0].done == 101
    now[0] = 10.0
    assert "left" not in meter.note()
    meter.add(Shard(0, "", 100, 0, work[1].bytes))
    assert "0 s left" in meter.note()


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 45, 600, 12_000)] == ["0 s", "45 s", "10 min", "3 h 20 min"]


@pytest.mark.ray
def test_ray_counts_the_same_for_its_dashboard(
    ray_cluster: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray.is_initialized()
    counted: dict[str, float] = {}
    real = metrics.Counter.inc

    def inc(self: metrics.Counter, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        counted[self.info["name"]] = counted.get(self.info["name"], 0) + value
        real(self, value, tags)

    monkeypatch.setattr(metrics.Counter, "inc", inc)
    parts = parts_of(tmp_path)
    work = divide(parts, tmp_path / "set", SETTINGS)
    meter = Meter(parts, work, [], "set", lambda _: None)
    for each in work:
        meter.add(Shard(0, "", 99, 1, each.bytes))
    raw = 200 * 64 * 64 * 4
    assert counted == {
        "cryoray_ingest_rows": 200,
        "cryoray_ingest_bytes": raw,
        "cryoray_ingest_quarantined": 2,
    }
