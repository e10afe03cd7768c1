"""The prepared set on disk: whole or not there, in order, and the same for the same input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.errors import FormatError, InputError, InternalError, QuarantineError, SettingsError
from cryoray.formats.mrc import read_header
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import (
    SHARDS,
    Part,
    PreparedSet,
    partial_folder,
    write_set,
    write_shard,
)
from cryoray.records import QUARANTINE_SCHEMA, Books, particles_schema
from cryoray.settings import IngestSettings, PreparationSettings
from tests.preparation.sources import particles, write_source

SETTINGS = IngestSettings(preparation=PreparationSettings(box=32, diameter=60), images_per_file=40)


def part(
    folder: Path, shards: Path, settings: IngestSettings, n: int = 30, range_mib: int = 64
) -> Part:
    """A part of 2n + 1 rows: one a copy of another, two of NaN, those in shards."""
    bad = particles(n, 64, seed=2)
    bad[4], bad[n - 1] = np.nan, np.nan
    again = ("000002@a.mrcs mic_a.mrc 1 1 1 4",)
    source = write_source(folder, [particles(n, 64), bad], extra=again)
    planned = plan(source, settings.preparation, range_mib)
    shards.mkdir(parents=True, exist_ok=True)
    made = [
        write_shard(shards, prepare_range(rows, settings.preparation), settings.dtype)
        for rows in planned.ranges
    ]
    labels = np.where(np.arange(len(source)) % 3 == 2, -1, np.arange(len(source)) % 3)
    return Part(planned, folder.name, labels.astype(np.int8), None, made)


def make(
    tmp_path: Path, name: str = "set", settings: IngestSettings = SETTINGS, **options: int
) -> tuple[PreparedSet, Books]:
    out = tmp_path / name
    partial = partial_folder(out)
    parts = [
        part(tmp_path / project, partial / SHARDS / project, settings, **options)
        for project in ("one", "two")
    ]
    books = write_set(out, partial, parts, settings)
    return PreparedSet.open(out), books


def test_a_set_is_in_the_order_of_its_sources_and_its_files_are_valid(tmp_path: Path) -> None:
    made, books = make(tmp_path)
    assert str(books) == "122 rows in = 116 out + 6 quarantined"
    assert made.n == 116
    files = sorted(file.name for file in made.path.iterdir())
    stacks = [f"images-0000{i}.mrcs" for i in range(4)]
    assert files == [*stacks, "particles.parquet", "quarantine.parquet", "set.json"]
    for stack in stacks:
        assert mrcfile.validate(made.path / stack)
    assert [read_header(made.path / stack).count for stack in stacks] == [40, 18, 40, 18]
    header = read_header(made.path / stacks[0])
    assert (header.dtype, header.pixel_size) == ("<f2", pytest.approx(2.5 * 36 / 32))
    table = pq.read_table(made.path / "particles.parquet")
    assert table.schema.equals(particles_schema(made.features))
    assert table["image"].to_pylist()[:4] == [f"{i:06d}@{s}.mrcs" for i in (1, 2) for s in "ab"]
    assert table["diameter"].to_pylist() == [60.0] * 116
    assert made.groups("project").tolist() == ["one"] * 58 + ["two"] * 58
    assert made.groups("micrograph").tolist()[:2] == ["one/mic_a.mrc", "one/mic_b.mrc"]
    assert made.labels.tolist()[:9] == [0, 1, -1, 0, 1, -1, 0, 1, -1]
    assert made.counts == {
        "rows": 122, "images": 116, "quarantined": 6, "keep": 40, "discard": 38, "unlabelled": 38
    }  # fmt: skip


def test_images_lie_where_their_rows_say(tmp_path: Path) -> None:
    made, _ = make(tmp_path)
    source = plan(write_source(tmp_path / "x", [particles(30, 64)]), SETTINGS.preparation, 64)
    expected = prepare_range(source.ranges[0], SETTINGS.preparation).images
    rows = np.array([85, 2, 58, 0, 2])  # of a.mrcs: 15th of part two, 2nd, 1st of part two, …
    np.testing.assert_allclose(made.images(rows), expected[[14, 1, 0, 0, 1]], atol=2e-3, rtol=1e-3)
    assert made.images(rows).dtype == np.float32
    assert made.images(np.arange(0)).shape == (0, 32, 32)
    with pytest.raises(InternalError):
        made.images(np.array([116]))


def test_what_was_quarantined_is_listed_by_the_source_s_own_rows(tmp_path: Path) -> None:
    made, _ = make(tmp_path)
    listed = pq.read_table(made.path / "quarantine.parquet")
    assert listed.schema.equals(QUARANTINE_SCHEMA)
    assert listed.slice(0, 3).to_pylist() == [
        {"image": image, "file": str(tmp_path / "one/particles.star"), "row": row, "reason": reason}
        for image, row, reason in (
            ("000005@b.mrcs", 10, "b.mrcs, image 5: 4,096 of 4,096 pixels are NaN or infinite"),
            ("000030@b.mrcs", 60, "b.mrcs, image 30: 4,096 of 4,096 pixels are NaN or infinite"),
            ("000002@a.mrcs", 61, "is the same image as row 3"),
        )
    ]


def test_the_digest_follows_content_and_settings_and_nothing_else(tmp_path: Path) -> None:
    made, _ = make(tmp_path)
    finer = SETTINGS.model_copy(update={"images_per_file": 7, "range_mib": 1})
    assert make(tmp_path, "again", finer, range_mib=1)[0].digest == made.digest
    clipped = PreparationSettings(box=32, diameter=60, clip=5)
    for changed in ({"dtype": "float32"}, {"preparation": clipped}):
        other = IngestSettings(**{**SETTINGS.model_dump(), **changed})
        assert make(tmp_path, "other", other)[0].digest != made.digest
    assert make(tmp_path, "fewer", n=29)[0].digest != made.digest


def test_features_come_back_by_name_with_what_is_missing_missing(tmp_path: Path) -> None:
    made, _ = make(tmp_path)
    matrix = made.feature_matrix(["defocus", "norm_correction"])
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[:4, 0], [0.9501, 0.9501, 0.9502, 0.9502], rtol=1e-6)
    assert np.isnan(matrix[:, 1]).all()
    bare = SETTINGS.model_copy(
        update={"preparation": PreparationSettings(box=32, diameter=60, features=())}
    )
    without, _ = make(tmp_path, "bare", bare)
    assert without.features == ()
    assert np.isnan(without.feature_matrix(["defocus"])).all()
    with pytest.raises(SettingsError, match="no feature 'beauty'"):
        made.feature_matrix(["beauty"])


def test_too_many_bad_rows_leave_their_list_and_no_set(tmp_path: Path) -> None:
    out = tmp_path / "set"
    older, _ = make(tmp_path)
    partial = partial_folder(out)
    bad = np.full((150, 32, 32), np.nan, np.float32)
    planned = plan(write_source(tmp_path / "x", [bad]), SETTINGS.preparation, 64)
    shard = write_shard(
        partial / SHARDS, prepare_range(planned.ranges[0], SETTINGS.preparation), "float16"
    )
    labels = np.full(150, -1, np.int8)
    with pytest.raises(QuarantineError, match="150 of 150 rows") as raised:
        write_set(out, partial, [Part(planned, "x", labels, None, [shard])], SETTINGS)
    assert len(pq.read_table(raised.value.file)) == 150
    assert sorted(file.name for file in partial.iterdir()) == ["quarantine.parquet"]
    assert PreparedSet.open(out).digest == older.digest


def test_a_lost_shard_is_our_own_fault(tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "set")
    whole = part(tmp_path / "one", partial / SHARDS, SETTINGS)
    with pytest.raises(InternalError, match="in no shard"):
        write_set(tmp_path / "set", partial, [replace(whole, shards=whole.shards[:1])], SETTINGS)


def test_another_folder_is_never_overwritten_and_an_older_set_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(InputError, match="mine: exists and is no prepared set; give --out"):
        partial_folder(tmp_path / "mine")
    first, _ = make(tmp_path)
    second, _ = make(tmp_path, n=20)
    assert (first.n, second.n) == (116, 76)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "one", "set", "two"]


def test_a_damaged_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no set\.json; make one with `cryoray ingest`"):
        PreparedSet.open(tmp_path)
    made, _ = make(tmp_path)
    file = made.path / "set.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(FormatError, match="format 99"):
        PreparedSet.open(made.path)
    file.write_text(file.read_text()[:100])
    with pytest.raises(FormatError, match="damaged"):
        PreparedSet.open(made.path)
    del description["kind"]
    file.write_text(json.dumps(description))
    with pytest.raises(FormatError, match=r"damaged.*kind"):
        PreparedSet.open(made.path)
    table = pq.read_table(made.path / "particles.parquet")
    pq.write_table(table.slice(1), made.path / "particles.parquet")
    with pytest.raises(FormatError, match="115 rows for 116 images"):
        _ = made.table
