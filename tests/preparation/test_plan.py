"""The plan: every row in one range or quarantined with its reason, whoever asks for which rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoray.formats.mrc import StackWriter, absence, read_header
from cryoray.formats.source import open_source
from cryoray.preparation import plan as planning
from cryoray.preparation import reader
from cryoray.preparation.features import source_features
from cryoray.preparation.plan import grouped, plan, protein_is_dark
from cryoray.preparation.prepare import prepare_range
from cryoray.records import Stack
from cryoray.settings import PreparationSettings
from tests.formats.files import write_particles, write_stack
from tests.preparation.sources import particles, write_source

SETTINGS = PreparationSettings(box=32, contrast="bright")
#: A source's columns with an entry for each row.
_ROWS = ("images", "stack", "frame", "micrograph", "pixel_size")


def test_every_row_is_in_one_range_in_the_order_of_its_stack(tmp_path: Path) -> None:
    source = write_source(tmp_path, [particles(300, 64), particles(200, 64)])
    planned = plan(source, SETTINGS, range_mib=1)
    assert len(planned.ranges) == 5  # 64 images of 16 KiB are a MiB
    assert all(1 << 20 <= part.bytes <= 2 << 20 for part in planned.ranges)
    assert [part.index for part in planned.ranges] == list(range(5))
    rows = np.concatenate([part.rows for part in planned.ranges])
    assert sorted(rows.tolist()) == list(range(500))
    for part in planned.ranges:
        assert (np.diff(part.frames) == 1).all()
        np.testing.assert_array_equal(source.frame[part.rows], part.frames)
    assert planned.rows == 500
    assert np.isfinite(planned.ranges[0].features[:, planned.features.index("defocus")]).all()


def test_rows_that_cannot_be_read_are_quarantined_with_their_reasons(
    tmp_path: Path,
) -> None:
    rest = "mic.mrc 1 1 1 4"
    source = write_source(
        tmp_path,
        [particles(3), particles(3)],
        extra=(
            f"000004@a.mrcs {rest}",
            f"000001@gone.mrcs {rest}",
            f"000002@b.mrcs {rest}",
            f"nothing {rest}",
        ),
    )
    stack = source.stacks[0]
    stack.write_bytes(stack.read_bytes()[: 1024 + 2 * 6400 + 17])  # a.mrcs: two of three left
    planned = plan(source, SETTINGS, 64)
    reasons = dict(planned.quarantined)
    assert planned.rows == len(source) == 10
    assert sorted(reasons) == [4, 6, 7, 8, 9]
    assert reasons[4].startswith("image 3 is not there: a.mrcs is shorter than its header says")
    assert reasons[6].startswith("image 4 is not there: a.mrcs")
    assert "gone.mrcs: there is no such stack" in reasons[7]
    assert reasons[8] == "is the same image as row 4"
    assert "'nothing' names no image" in reasons[9]


def test_a_row_beyond_a_whole_stack_says_how_many_images_there_are(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path, [particles(3)], extra=("000009@a.mrcs mic.mrc 1 1 1 4",))
    assert plan(source, SETTINGS, 64).quarantined == (
        (3, "image 9 is not there: a.mrcs holds 3 images"),
    )


def test_a_subset_of_rows_is_planned_as_in_the_whole(tmp_path: Path) -> None:
    source = write_source(
        tmp_path, [particles(30), particles(20)], extra=("000001@a.mrcs m 1 1 1 4",)
    )
    settings = PreparationSettings(box=32, diameter=60)
    whole, some = plan(source, settings, 64), plan(source, settings, 64, rows=np.array([50, 7, 8]))
    assert some.quarantined == whole.quarantined == ((50, "is the same image as row 1"),)
    assert some.rows == 3
    table = {
        row: features
        for part in whole.ranges
        for row, features in zip(part.rows.tolist(), part.features, strict=True)
    }
    for part in some.ranges:
        for row, features in zip(part.rows.tolist(), part.features, strict=True):
            np.testing.assert_array_equal(features, table[row])


def test_the_stack_s_pixel_size_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    settings = PreparationSettings(box=32, diameter=60, contrast="bright")
    own = plan(write_source(tmp_path, [particles(3)]), settings, 64)
    assert own.pixel_size.tolist() == [2.5] * 3
    assert own.prepared_pixel_size.tolist() == [2.5 * 36 / 32] * 3
    header = plan(write_source(tmp_path, [particles(3)], pixel_size="nan"), settings, 64)
    assert header.pixel_size.tolist() == [3.0] * 3
    assert header.ranges[0].pixel_size.tolist() == [3.0] * 3


def test_a_shuffled_source_is_still_read_stack_by_stack_and_in_order(tmp_path: Path) -> None:
    source = write_source(tmp_path, [particles(70), particles(50), particles(60)])
    order = np.random.default_rng(0).permutation(len(source))
    shuffled = replace(
        source,
        **{name: getattr(source, name)[order] for name in _ROWS},
        metadata={name: values[order] for name, values in source.metadata.items()},
    )
    planned = plan(shuffled, SETTINGS, 64)
    assert [part.stack.path.name for part in planned.ranges] == ["a.mrcs", "b.mrcs", "c.mrcs"]
    straight = {source.images[row]: x for p in plan(source, SETTINGS, 64).ranges
                for row, x in zip(p.rows.tolist(), p.features, strict=True)}  # fmt: skip
    for part in planned.ranges:
        assert part.frames.tolist() == list(range(part.stack.count))
        for row, features in zip(part.rows.tolist(), part.features, strict=True):
            np.testing.assert_array_equal(features, straight[shuffled.images[row]])


@pytest.mark.long
def test_small_stacks_are_put_together_and_no_task_is_beyond_twice_the_size(tmp_path: Path) -> None:
    source = write_source(tmp_path, [particles(n, 64) for n in (30, 20, 40, 90, 5, 130)])
    groups = grouped(plan(source, SETTINGS, range_mib=1).ranges, range_mib=1)
    parts = [[(part.stack.path.name, len(part.rows)) for part in group] for group in groups]
    assert parts == [
        [("a.mrcs", 30), ("b.mrcs", 20), ("c.mrcs", 40)],
        [("d.mrcs", 90), ("e.mrcs", 5)],
        [("f.mrcs", 65)],
        [("f.mrcs", 65)],
    ]
    assert grouped([], 1) == []


class Counted(np.ndarray):
    """An array that adds up how many of its elements are looked at."""

    looked_at = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        Counted.looked_at += sum(getattr(x, "size", 1) for x in inputs)
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        given = {} if out is None else {"out": tuple(np.asarray(x) for x in out)}
        made = getattr(ufunc, method)(*plain, **given, **options)
        return made.view(Counted) if isinstance(made, np.ndarray) else made

    def __getitem__(self, key):
        made = self.view(np.ndarray)[key]
        Counted.looked_at += getattr(made, "size", 1) if isinstance(key, np.ndarray) else 1
        return made.view(Counted) if isinstance(made, np.ndarray) else made


@pytest.mark.long
def test_the_work_of_planning_grows_with_the_rows_and_not_with_rows_times_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    asked: list[int] = []

    def header_of(path: Path) -> Stack:
        opened.append(path)
        return read_header(path)

    def features_of(*given: Any, rows: np.ndarray, **options: Any) -> np.ndarray:
        asked.append(len(rows))
        return source_features(*given, rows=rows, **options)

    monkeypatch.setattr(reader, "read_header", header_of)
    monkeypatch.setattr(planning, "source_features", features_of)
    work = []
    for stacks in (25, 100):
        source = write_source(tmp_path / str(stacks), [particles(4)])
        n = 4 * stacks
        paths = []
        for i in range(stacks):
            paths.append(tmp_path / str(stacks) / f"{i}.mrcs")
            paths[-1].hardlink_to(source.stacks[0])
        order = np.random.default_rng(0).permutation(n)
        many = replace(
            source,
            images=np.array([f"{i}" for i in range(n)], object),
            stacks=tuple(paths),
            stack=(order // 4).astype(np.int32).view(Counted),
            frame=(order % 4).view(Counted),
            micrograph=np.full(n, "", object),
            pixel_size=np.full(n, 2.0, np.float32).view(Counted),
            metadata={},
        )
        Counted.looked_at = 0
        planned = plan(many, SETTINGS, 64)
        work.append(Counted.looked_at)
        assert len(planned.ranges) == stacks
        assert sorted(opened) == sorted(paths)
        assert asked == [n]
        opened.clear()
        asked.clear()
    assert work[1] / work[0] == pytest.approx(4, rel=0.1)


def test_why_a_truncated_stack_lacks_images_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path, [particles(50)])
    stack = source.stacks[0]
    stack.write_bytes(stack.read_bytes()[: 1024 + 6400])
    looked: list[object] = []

    def reason_for(stack: Stack) -> str:
        looked.append(stack)
        return absence(stack)

    monkeypatch.setattr(planning, "absence", reason_for)
    assert len(plan(source, SETTINGS, 64).quarantined) == 49
    assert len(looked) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_is_found_from_the_images(tmp_path: Path, sign: int) -> None:
    source = write_source(tmp_path, [particles(150, sign=sign), particles(150, seed=1, sign=sign)])
    settings = PreparationSettings(box=32)
    assert protein_is_dark(source, settings) is (sign < 0)
    assert plan(source, settings, 64, rows=np.array([1])).invert is (sign < 0)


def test_without_evidence_the_convention_decides(tmp_path: Path) -> None:
    noise = write_source(tmp_path, [particles(100, sign=0)])
    assert protein_is_dark(noise, PreparationSettings()) is False
    assert (
        protein_is_dark(write_source(tmp_path, [particles(1, sign=-1)]), PreparationSettings())
        is False
    )
    assert protein_is_dark(noise, PreparationSettings(contrast="dark")) is True


@pytest.mark.real
def test_contrast_of_real_particles_and_classes(real_data: Path) -> None:
    for path, kind in (
        ("particles-empiar10017", "particle"),
        ("relion5-project/Extract/job009", "particle"),
        ("relion5-project/Class2D/job010", "class2d"),
    ):
        source = open_source(real_data / path, kind)  # type: ignore[arg-type]
        assert protein_is_dark(source, PreparationSettings()) is False


def test_a_file_of_several_images_that_a_row_names_without_a_number_is_set_aside(
    tmp_path: Path,
) -> None:
    """So Warp and RELION name subtomograms, and old RELION files of single images."""
    write_stack(tmp_path / "one.mrc", 1, 64)
    write_stack(tmp_path / "many.mrc", 5, 64)
    names = ["one.mrc", "many.mrc", "3@many.mrc"]
    source = open_source(write_particles(tmp_path / "particles.star", names))
    made = plan(source, PreparationSettings(), 8)
    assert made.quarantined == (
        (
            1,
            "names many.mrc without the number of an image, and that holds 5: it is a stack or a volume",
        ),
    )
    assert sorted(row for part in made.ranges for row in part.rows.tolist()) == [0, 2]


def test_a_job_of_classes_decides_one_window_whatever_the_box_and_whichever_rows(
    tmp_path: Path,
) -> None:
    """The same classes in a wider box, outside of which nothing is known, come to the same input."""
    rng = np.random.default_rng(0)
    axis = np.arange(48) - 24
    radii = np.hypot(axis[:, None], axis)
    images = np.where(radii <= 18, rng.normal(size=(8, 48, 48)) + 3 * (radii < 9), 0)
    settings = PreparationSettings(geometry="job", features=())
    made = []
    for name, box in (("narrow", 48), ("wide", 80)):
        boxed = np.zeros((8, box, box), np.float32)
        start = box // 2 - 24
        boxed[:, start : start + 48, start : start + 48] = images
        with StackWriter(tmp_path / f"{name}_classes.mrcs", box, box, "float32", 4.0) as stack:
            stack.append(boxed)
        source = open_source(tmp_path / f"{name}_classes.mrcs", "class2d")
        (whole,) = plan(source, settings, 64).ranges
        (some,) = plan(source, settings, 64, rows=np.array([2, 5])).ranges
        assert some.window == whole.window
        assert whole.window is not None
        assert whole.window < 48
        prepared = prepare_range(whole, settings)
        np.testing.assert_array_equal(prepare_range(some, settings).images, prepared.images[[2, 5]])
        made.append(prepared.images)
    np.testing.assert_allclose(made[1], made[0], atol=1e-3)
    # Beyond the circle there is nothing, whatever the mask was.
    corner = made[0][:, :6, :6]
    assert np.abs(corner - corner[:, :1, :1]).max() < 0.01
