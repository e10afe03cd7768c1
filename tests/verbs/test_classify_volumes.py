"""`classify` of 3D classes: what is written of them and of their particles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.errors import FormatError, InputError, SettingsError
from cryoray.formats.class_volumes import open_volumes, write_particles
from cryoray.formats.star import parse
from cryoray.records import Event, Verdicts
from cryoray.settings import ClassifySettings, Settings
from cryoray.verbs.classify import classify
from tests.volumes import COUNTS, write_volume_job


def test_every_side_is_written_with_its_particles_and_a_page(
    class_ensemble: Path, tmp_path: Path
) -> None:
    job = write_volume_job(tmp_path)
    chosen = ClassifySettings(ensemble=str(class_ensemble), kind="class3d")
    events: list[Event] = []
    out = classify(job, tmp_path / "out", Settings(classify=chosen), on_event=events.append)
    table = pq.read_table(out / "verdicts.parquet")
    assert table["image"].to_pylist()[0] == "Class3D/job004/run_it025_class001.mrc"
    assert table["particles"].to_pylist() == list(COUNTS[:3])
    assert [event.name for event in events] == ["classify.quarantined", "classify.done"]
    assert events[0].data["rows"] == 1
    counted = events[1].data["particles"]
    assert isinstance(counted, dict)
    assert sum(counted.values()) == sum(COUNTS)
    number = parse(job / "run_it025_data.star")["particles"].numbers("rlnClassNumber")
    for verdict, name in (
        ("keep", "particles.star"),
        ("discard", "particles_discarded.star"),
        ("review", "particles_review.star"),
    ):
        classes = [i + 1 for i, v in enumerate(table["verdict"].to_pylist()) if v == verdict]
        written = parse(out / name)["particles"]
        assert len(written) == counted[verdict] == np.isin(number, classes).sum()
    page = (out / "report.html").read_text()
    assert page.count("<img") == 3 * 6
    assert "12 particles, class distribution 52.0%, 18.0 Å" in page
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["policy"] == "best of the job"
    assert metrics["prevalence"] is None
    assert [metrics[name] for name in ("rows_in", "rows_out", "quarantined")] == [4, 3, 1]


def test_no_policy_draws_the_line_among_3d_classes(class_ensemble: Path, tmp_path: Path) -> None:
    chosen = ClassifySettings(ensemble=str(class_ensemble), kind="class3d", policy="share=0.5")
    with pytest.raises(SettingsError, match=r"no policy \(share=0.5\) applies to 3D classes"):
        classify(tmp_path, tmp_path / "out", Settings(classify=chosen))


def test_a_selection_that_a_person_made_is_not_overwritten(
    class_ensemble: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/selection.jsonl").write_text("{}\n")
    chosen = ClassifySettings(ensemble=str(class_ensemble), kind="class3d")
    with pytest.raises(InputError, match="is a selection that a person made"):
        classify(write_volume_job(tmp_path), tmp_path / "out", Settings(classify=chosen))


def test_particles_that_change_meanwhile_are_named_as_what_changed(tmp_path: Path) -> None:
    classes = open_volumes(write_volume_job(tmp_path))
    assert classes.data is not None
    lines = classes.data.read_text().rstrip().splitlines()
    classes.data.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(FormatError, match=r"data\.star: changed while its classes were judged"):
        write_particles(tmp_path / "out", classes, Verdicts.none())
