"""The prepared set on disk: whole or not there, in order, and the same for the same input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.errors import FormatError, InputError, InternalError, QuarantineError, SettingsError
from cryoray.formats.mrc import read_header
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.shards import Part, divide, prepare_shard
from cryoray.preparation.writing import check_out, write_set
from cryoray.records import QUARANTINE_SCHEMA, REASONS, RowCounts, particles_schema
from cryoray.settings import IngestSettings, PreparationSettings
from tests.preparation.sources import particles, write_source

SETTINGS = IngestSettings(preparation=PreparationSettings(box=32, diameter=60), images_per_file=40)


def part(folder: Path, settings: IngestSettings = SETTINGS, n: int = 30) -> Part:
    """A part of 2n + 1 rows: one a copy of another, two of NaN."""
    bad = particles(n, 64, seed=2)
    bad[4], bad[n - 1] = np.nan, np.nan
    again = ("000002@a.mrcs mic_a.mrc 1 1 1 4",)
    source = write_source(folder, [particles(n, 64), bad], extra=again)
    labels = np.where(np.arange(len(source)) % 3 == 2, -1, np.arange(len(source)) % 3)
    planned = plan(source, settings.preparation, settings.range_mib)
    return Part(planned, folder.name, labels.astype(np.int8), None)


def merge(out: Path, parts: list[Part], settings: IngestSettings = SETTINGS) -> RowCounts:
    """The parts' work done, last things first, and put together."""
    work = divide(parts, out, settings)
    return write_set(out, parts, [prepare_shard(w, settings) for w in reversed(work)], settings)


def make(
    tmp_path: Path, name: str = "set", settings: IngestSettings = SETTINGS, n: int = 30
) -> tuple[PreparedSet, RowCounts]:
    row_counts = merge(
        tmp_path / name,
        [part(tmp_path / project, settings, n) for project in ("one", "two")],
        settings,
    )
    return PreparedSet.open(tmp_path / name), row_counts


def test_a_set_carries_why_its_images_were_discarded(tmp_path: Path) -> None:
    without = part(tmp_path / "one")
    reasons = np.full(len(without.labels), -1, np.int8)
    reasons[:2] = REASONS.index("broken"), REASONS.index("ice")
    merge(tmp_path / "set", [replace(without, reasons=reasons)])
    merge(tmp_path / "plain", [without])
    made, plain = (PreparedSet.open(tmp_path / name) for name in ("set", "plain"))
    assert made.table["reason"].to_pylist()[:3] == ["broken", "ice", None]
    assert made.reasons.tolist()[:3] == [REASONS.index("broken"), REASONS.index("ice"), -1]
    assert (plain.reasons == -1).all()
    assert made.digest != plain.digest


def test_a_set_older_than_reasons_is_read_and_added_to(tmp_path: Path) -> None:
    merge(tmp_path / "set", [part(tmp_path / "one")])
    file = tmp_path / "set/particles.parquet"
    pq.write_table(pq.read_table(file).drop_columns("reason"), file)
    old = PreparedSet.open(tmp_path / "set")
    assert (old.reasons == -1).all()
    new = part(tmp_path / "two")
    new = replace(new, reasons=np.zeros(len(new.labels), np.int8))
    shards = [prepare_shard(work, SETTINGS) for work in divide([new], tmp_path / "set", SETTINGS)]
    write_set(tmp_path / "set", [new], shards, SETTINGS, base=old)
    both = PreparedSet.open(tmp_path / "set")
    assert both.reasons.tolist() == [-1] * 58 + [0] * 58
    assert both.labels.tolist()[:58] == old.labels.tolist()


def test_a_set_is_in_the_order_of_its_sources_and_its_files_are_valid(tmp_path: Path) -> None:
    made, row_counts = make(tmp_path)
    assert str(row_counts) == "122 rows in = 116 out + 6 quarantined"
    assert made.n == 116
    files = sorted(file.name for file in made.path.iterdir())
    stacks = [f"images-0000{i}.mrcs" for i in range(4)]
    assert files == [*stacks, "particles.parquet", "quarantine.parquet", "set.json"]
    for stack in stacks:
        assert mrcfile.validate(made.path / stack)
    assert [read_header(made.path / stack).count for stack in stacks] == [40, 18, 40, 18]
    header = read_header(made.path / stacks[0])
    assert header.dtype == "<f2"
    assert header.pixel_size == pytest.approx(2.5 * 36 / 32)
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


@pytest.mark.long
def test_the_digest_follows_content_and_settings_and_nothing_else(tmp_path: Path) -> None:
    made, _ = make(tmp_path)
    finer = SETTINGS.model_copy(update={"images_per_file": 7, "range_mib": 1})
    again, _ = make(tmp_path, "again", finer, n=100)
    assert again.digest == make(tmp_path, "coarse", n=100)[0].digest != made.digest
    np.testing.assert_array_equal(
        again.images(np.arange(again.n)),
        PreparedSet.open(tmp_path / "coarse").images(np.arange(again.n)),
    )
    assert make(tmp_path, "same")[0].digest == made.digest
    clipped = PreparationSettings(box=32, diameter=60, clip=5)
    for changed in ({"dtype": "float32"}, {"preparation": clipped}):
        other = IngestSettings(**{**SETTINGS.model_dump(), **changed})
        assert make(tmp_path, "other", other)[0].digest != made.digest
    assert make(tmp_path, "fewer", n=29)[0].digest != made.digest


def test_a_shard_is_named_after_all_that_its_bytes_depend_on(tmp_path: Path) -> None:
    def names(settings: IngestSettings = SETTINGS, **changes: Any) -> list[str]:
        ranges = tuple(replace(rows, **changes) for rows in whole.plan.ranges)
        changed = replace(whole, plan=replace(whole.plan, ranges=ranges))
        return [work.path.name for work in divide([changed], tmp_path / "set", settings)]

    whole = part(tmp_path / "one")
    rows = whole.plan.ranges[0]
    others = [
        names(SETTINGS.model_copy(update={"dtype": "float32"})),
        names(SETTINGS.model_copy(update={"preparation": PreparationSettings(box=64)})),
        names(invert=True),
        names(stack=replace(rows.stack, mtime_ns=1)),
        names(stack=replace(rows.stack, size=1)),
        names(stack=replace(rows.stack, path=tmp_path / "x.mrcs")),
        names(frames=rows.frames + 1),
        names(pixel_size=rows.pixel_size + 1),
    ]
    assert names() == names(SETTINGS.model_copy(update={"max_quarantined": 0.5}))
    assert all(other != names() for other in others)


def test_shards_hold_no_more_than_they_say_and_are_found_again(tmp_path: Path) -> None:
    parts = [part(tmp_path / "one")]
    (work,) = divide(parts, tmp_path / "set", SETTINGS)
    assert work.done is None
    made = prepare_shard(work, SETTINGS)
    assert work.done == made
    assert (made.images, made.quarantined, made.bytes) == (58, 2, 60 * 64 * 64 * 4)
    for left in (".npy", ".json", ".rows.npy"):  # of a folder of shards that was being removed
        content = work.path.with_suffix(left).read_bytes()
        work.path.with_suffix(left).unlink()
        assert work.done is None
        work.path.with_suffix(left).write_bytes(content)
    assert work.done == made
    work.path.with_suffix(".rows.npy").write_bytes(b"cut short")
    assert work.done is None


@pytest.mark.long
def test_a_set_in_random_order_is_that_of_its_source(tmp_path: Path) -> None:
    """Stacks are read in order, images of three of them lie scattered over four files."""
    source = write_source(
        tmp_path / "x", [particles(50), particles(40, seed=1), particles(30, seed=2)]
    )
    order = np.random.default_rng(0).permutation(len(source))
    columns = {
        name: getattr(source, name)[order] for name in ("images", "stack", "frame", "micrograph")
    }
    shuffled = replace(source, **columns, metadata={})
    sets = []
    for name, each in (("straight", replace(source, metadata={})), ("shuffled", shuffled)):
        planned = plan(each, SETTINGS.preparation, 64)
        merge(tmp_path / name, [Part(planned, "x", np.full(120, -1, np.int8), None)])
        sets.append(PreparedSet.open(tmp_path / name))
    assert sets[1].table["image"].to_pylist() == source.images[order].tolist()
    np.testing.assert_array_equal(sets[1].images(np.arange(120)), sets[0].images(order))


@pytest.mark.long
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


@pytest.mark.long
def test_too_many_bad_rows_leave_their_list_and_no_set(tmp_path: Path) -> None:
    older, _ = make(tmp_path)
    bad = np.full((150, 32, 32), np.nan, np.float32)
    planned = plan(write_source(tmp_path / "x", [bad]), SETTINGS.preparation, 64)
    with pytest.raises(QuarantineError, match="150 of 150 rows") as raised:
        merge(tmp_path / "set", [Part(planned, "x", np.full(150, -1, np.int8), None)])
    assert len(pq.read_table(raised.value.file)) == 150
    assert raised.value.file == tmp_path / "set.shards" / "quarantine.parquet"
    assert PreparedSet.open(tmp_path / "set").digest == older.digest


def test_a_source_of_which_nothing_came_through_is_no_success(tmp_path: Path) -> None:
    """Few rows, and beside many good ones: by the bound alone a wrong path would pass."""
    good = part(tmp_path / "one")
    source = write_source(tmp_path / "gone", [particles(20)])
    source.stacks[0].unlink()
    planned = plan(source, SETTINGS.preparation, 64)
    gone = Part(planned, "gone", np.full(20, -1, np.int8), None)
    with pytest.raises(
        QuarantineError, match=r"none of its 20 rows .*there is no such stack"
    ) as raised:
        merge(tmp_path / "set", [good, gone])
    assert raised.value.file == source.path
    assert not (tmp_path / "set").exists()


def test_a_lost_shard_is_our_own_fault(tmp_path: Path) -> None:
    whole = part(tmp_path / "one")
    with pytest.raises(InternalError, match="in no shard"):
        write_set(tmp_path / "set", [whole], [], SETTINGS)


def test_a_part_is_added_without_touching_those_that_are_there(tmp_path: Path) -> None:
    together, _ = make(tmp_path, "together")
    one, two = part(tmp_path / "one"), part(tmp_path / "two")
    out = tmp_path / "set"
    merge(out, [one])
    before = {path.name: path.stat() for path in out.glob("images-*")}
    work = divide([two], out, SETTINGS)
    shards = [prepare_shard(each, SETTINGS) for each in work]
    row_counts = write_set(out, [two], shards, SETTINGS, base=PreparedSet.open(out))
    assert str(row_counts) == "61 rows in = 58 out + 3 quarantined"
    made = PreparedSet.open(out)
    for name, was in before.items():
        now = (out / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    assert made.digest == together.digest
    for file in sorted(together.path.iterdir()):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_another_folder_is_never_overwritten_and_an_older_set_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(InputError, match="mine: exists and is not a prepared set; give --out"):
        check_out(tmp_path / "mine")
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
