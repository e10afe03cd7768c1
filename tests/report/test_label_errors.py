"""Suspected labels come with their pictures, the most confident first, and boosting's table is the source."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from cryoray.errors import InputError
from cryoray.models.ensemble import HELD_OUT
from cryoray.preparation.prepared import PreparedSet
from cryoray.report.label_errors import report_labels
from tests.sets import write_labelled_set


def test_suspected_labels_are_listed_and_shown(tmp_path: Path) -> None:
    prepared = PreparedSet.open(write_labelled_set(tmp_path, "p", n=4))
    score = np.linspace(0, 1, prepared.n, dtype=np.float32)
    keep = score < 0.5
    suspected = (score < 0.2) | (score > 0.8)
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    with pytest.raises(InputError, match="train the ensemble again"):
        report_labels(ensemble, [prepared.path], tmp_path / "labels")
    columns = {name: prepared.table[name] for name in ("image", "project", "micrograph")}
    voted = np.full(prepared.n, 0.25, np.float32)  # what all three say raised no suspicion
    table = pa.table({**columns, "keep": keep, "d1": score, "score": voted, "suspected": suspected})
    pq.write_table(table, ensemble / HELD_OUT)

    count = report_labels(ensemble, [prepared.path], tmp_path / "labels")
    assert count == suspected.sum()
    listed = csv.read_csv(tmp_path / "labels" / "suspected_labels.csv")
    wrong = np.where(listed["keep"], 1 - listed["d1"].to_numpy(), listed["d1"].to_numpy())
    assert (np.diff(wrong) <= 1e-6).all()
    assert set(listed["image"].to_pylist()) == set(
        prepared.table["image"].filter(pa.array(suspected)).to_pylist()
    )
    page = (tmp_path / "labels" / "report.html").read_text()
    assert page.count("data:image") == count
    shown = sorted(re.findall(r"<span>([\d.]+)</span></li>", page))
    assert shown == sorted(f"{one:.2f}" for one in score[suspected])
    assert f"Of {prepared.n} labels {count} look wrong" in page
    report_labels(ensemble, [], tmp_path / "labels")  # without the set: the table alone
    assert "data:image" not in (tmp_path / "labels" / "report.html").read_text()
