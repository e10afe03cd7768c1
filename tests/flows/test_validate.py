"""Validation as a flow: the verb's numbers, kept as a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from cryoray.formats.volume import write_volume
from cryoray.records import Progress
from flows import validate
from flows.reporter import Reporter, key
from tests.half_maps import PIXEL, half_maps, phantom

pytestmark = pytest.mark.long


def test_fsc_as_a_flow_keeps_resolutions(tmp_path: Path, prefect: None) -> None:
    first, second = (
        write_volume(tmp_path / f"half{n}.mrc", half.numpy(), PIXEL)
        for n, half in enumerate(half_maps(phantom(), 0.8), 1)
    )
    numbers = validate.fsc(first, second, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["fsc"] == numbers["fsc"]
    with get_client(sync_client=True) as client:
        kept = {one.key: one for one in client.read_artifacts()}
    assert json.loads(str(kept[key(f"validate-{tmp_path.name}-out")].data)) == validate.rows(
        numbers
    )
    page = tmp_path / "out" / "report.html"
    assert f"[report of out]({page.as_uri()})" in str(
        kept[key(f"report-validate-{tmp_path.name}-out")].data
    )


def test_progress_of_each_run_has_a_key_of_its_own(tmp_path: Path, prefect: None) -> None:
    @flow
    def work(out: str) -> None:
        with Reporter("set", out) as reporter:
            reporter.progress(Progress("read", 1, 2))

    work("first")
    work("second")
    with get_client(sync_client=True) as client:
        keys = {one.key for one in client.read_artifacts()}
    assert keys >= {"read-first", "read-second"}


def test_rows_are_the_numbers_that_a_person_looks_for() -> None:
    limits = {"0.143": {"interpolated": 4.0}, "0.5": {"interpolated": 6.0}}
    assert validate.rows({"sets": {"kept": {"resolution": limits}}}) == [
        {"what": "kept at 0.143, Å", "value": 4.0},
        {"what": "kept at 0.5, Å", "value": 6.0},
    ]
    assert validate.rows({"ours": {"mse": {"median": 0.1}}}) == [
        {"what": "mse, ours, median", "value": 0.1}
    ]
