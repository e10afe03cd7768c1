"""A whole day, tiny: past projects in, live verdicts and one page out, kept by Prefect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from cryoray.formats.source import open_source
from cryoray.settings import RuntimeSettings
from flows.day_report import judged
from flows.facility_day import Day, emptied, facility_day
from flows.reporter import key

pytestmark = pytest.mark.ray


def test_a_tiny_day(tmp_path: Path, prefect: None, ray_cluster: RuntimeSettings) -> None:
    day = Day(past=4, images=60, epochs=1)
    made = facility_day(tmp_path, day=day)

    assert made["live"]["n"] == day.images
    assert made["held_out"]["n"] == day.images
    assert made["shipped"]["n"] == day.images
    assert made["images_per_second"] > 0
    collection = open_source(tmp_path / "new")
    verdicts = judged(collection, made["verdicts"])
    assert verdicts["row"].to_pylist() == list(range(day.images))
    merged = [made["verdicts"] / f"{side}.star" for side in ("kept", "discarded", "review")]
    assert sum(file.read_text().count("@") for file in merged) == day.images
    assert len(list((tmp_path / "live").glob("*.mrcs"))) == len(set(collection.micrograph))
    page = made["report"].read_text()
    headings = re.findall(r"<h2[^>]*>([^<]*)", page)
    assert len(set(headings)) == len(headings)
    assert {
        *("Summary", "New collection: result", "Past projects held out: result"),
        *("Found, lost and passed: trained here, judged live", "The ensemble that ships: result"),
        *("New collection: kept and discarded", "Past projects held out: calibration"),
    } <= set(headings)

    with get_client(sync_client=True) as client:
        states = {run.name: run.state_name for run in client.read_flow_runs()}
        kept = {artifact.key for artifact in client.read_artifacts()}
    assert set(states.values()) == {"Completed"}
    run = tmp_path.name
    of_run = {f"set-{run}-set", f"card-{run}-ensemble", f"metrics-{run}-evaluation"}
    of_run |= {
        f"metrics-live-{run}",
        f"metrics-shipped-{run}",
        f"report-day-{tmp_path.parent.name}-{run}",
    }
    assert {key(text) for text in of_run} <= kept
    assert emptied(tmp_path) == tmp_path, "the next day may have the same folder"
    assert not list(tmp_path.iterdir())
