"""Images are binned by where they were seen from, as far as their sources still say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.formats.source import open_source
from cryoray.preparation.plan import plan
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.shards import Part, divide, prepare_shard
from cryoray.preparation.views import directions, views
from cryoray.preparation.writing import write_set
from cryoray.settings import IngestSettings, PreparationSettings
from tests.examples import particles, write_stack

STAR = """
data_particles

loop_
_rlnImageName #1
_rlnAngleRot #2
_rlnAngleTilt #3
_rlnClassNumber #4
"""


def test_bins_of_views_are_of_equal_area_and_a_view_is_its_mirror_image() -> None:
    rng = np.random.default_rng(0)
    rot = rng.uniform(-180, 180, 40_000)
    tilt = np.degrees(np.arccos(rng.uniform(-1, 1, 40_000)))
    names, count = np.unique(directions(rot, tilt).astype(str), return_counts=True)
    assert len(names) == 12
    assert np.abs(count / 40_000 - 1 / 12).max() < 0.01
    assert (directions(rot, tilt) == directions(rot + 180, 180 - tilt)).all()
    assert directions(np.array([10.0, np.nan]), np.array([80.0, 3.0])).tolist() == [
        "tilt 48 to 90°, rot 0 to 45°",
        "missing",
    ]


def test_views_come_from_sources_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    settings = IngestSettings(preparation=PreparationSettings(box=16))
    parts = []
    for project in ("a", "b"):
        folder = tmp_path / project
        folder.mkdir()
        write_stack(folder / "p.mrcs", particles(4, 20))
        rows = [f"{i + 1:06d}@p.mrcs 10 {5 + 40 * i} {i + 1}" for i in range(4)]
        (folder / "particles.star").write_text(STAR + "\n".join(rows) + "\n")
        planned = plan(open_source(folder / "particles.star"), settings.preparation, 64)
        parts.append(Part(planned, project, np.ones(4, np.int8), None))
    out = tmp_path / "set"
    write_set(
        out, parts, [prepare_shard(w, settings) for w in divide(parts, out, settings)], settings
    )
    examples = PreparedSet.open(out)
    (tmp_path / "b" / "particles.star").unlink()
    found, complaints = views(examples, np.array([0, 1, 3, 6]))
    assert found["class"].tolist() == ["a, class 1", "a, class 2", "a, class 4", "missing"]
    assert found["orientation"].tolist() == [
        "a, tilt 0 to 24°",
        "a, tilt 24 to 48°, rot 0 to 120°",
        "a, tilt 48 to 90°, rot 180 to 225°",
        "missing",
    ]
    assert len(complaints) == 1
    assert str(tmp_path / "b" / "particles.star") in complaints[0]
