"""Merged sides as an independent reader sees them: one optics table, every row once, what people said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from cryoray.errors import InternalError
from cryoray.formats.source import open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.session.merging import Merger, Part
from tests import examples

VERDICTS = ("keep", "discard", "review", "keep")


def star(
    path: Path, columns: Sequence[str], rows: Sequence[str], optics: Sequence[str] = ()
) -> Path:
    head = [f"_{name} #{at}" for at, name in enumerate(columns, 1)]
    lines = ["data_particles", "", "loop_", *head, *rows, ""]
    if optics:
        names = ["rlnOpticsGroup", "rlnOpticsGroupName", "rlnImagePixelSize", "rlnVoltage"]
        names += ["rlnSphericalAberration"] if len(optics[0].split()) > 4 else []
        table = [f"_{name} #{at}" for at, name in enumerate(names, 1)]
        lines = ["data_optics", "", "loop_", *table, *optics, "", *lines]
    path.write_text("\n".join(lines))
    return path


def part(
    root: Path,
    name: str,
    *,
    columns: Sequence[str] = ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU"),
    values: Sequence[str] = ("1", "9000"),
    optics: Sequence[str] = ("1 first 1.06 300",),
    bare: bool = False,
    overrides: dict[int, bool] | None = None,
    verdicts: Sequence[str] = VERDICTS,
) -> Part:
    """A stack of four images with one verdict of each sort, and one more keep."""
    stack = examples.write_stack(root / f"{name}.mrcs", examples.particles(4, 16))
    path = stack
    if not bare:
        rows = [" ".join([f"{i:06d}@{name}.mrcs", *values]) for i in range(1, 5)]
        path = star(root / f"{name}_extract.star", columns, rows, optics)
    source = open_source(path)
    folder = root / "verdicts" / f"{name}.mrcs"
    write_verdicts(folder, source, examples.verdicts_of(verdicts, np.ones(4, np.float32)))
    return Part(folder, stack, bare, overrides or {}, 4, "digest")


def merged(root: Path, *parts: Part) -> dict[str, Any]:
    counts = Merger(root, root).merge(parts).counts
    assert sum(counts.values()) == 4 * len(parts)
    assert not list(root.glob(".*")), "nothing is left behind"
    return starfile.read(root / "kept.star", always_dict=True)


def test_equal_optics_are_one_group_and_others_get_numbers_of_their_own(tmp_path: Path) -> None:
    tables = merged(
        tmp_path,
        part(tmp_path, "a"),
        part(tmp_path, "b"),
        part(tmp_path, "c", optics=("1 first 0.85 300",)),
        part(tmp_path, "d", optics=("1 other 9 200", "7 first 1.06 300"), values=("7", "9000")),
    )
    optics, particles = tables["optics"], tables["particles"]
    assert optics["rlnOpticsGroup"].tolist() == [1, 2]
    assert optics["rlnImagePixelSize"].tolist() == [1.06, 0.85]
    assert optics["rlnOpticsGroupName"].nunique() == 2, "RELION takes equal names for one group"
    by_stack = dict(
        zip(particles["rlnImageName"].str[7:], particles["rlnOpticsGroup"], strict=True)
    )
    assert by_stack == {"a.mrcs": 1, "b.mrcs": 1, "c.mrcs": 2, "d.mrcs": 1}
    assert len(particles) == 8


def test_text_that_one_group_lacks_is_no_files_name(tmp_path: Path) -> None:
    first, second = part(tmp_path, "a"), part(tmp_path, "b", optics=("1 first 0.85 300",))
    for side in ("kept", "discarded", "review"):
        file = first.folder / f"{side}.star"
        text = file.read_text().replace("_rlnVoltage #4", "_rlnVoltage #4\n_rlnMtfFileName #5")
        file.write_text(text.replace("1.06 300", "1.06 300 mtf.star"))
    optics = merged(tmp_path, first, second)["optics"]
    assert "rlnMtfFileName" not in optics.columns
    assert optics["rlnVoltage"].tolist() == [300, 300]


def test_columns_that_not_all_have_are_left_out_and_the_rest_keeps_its_values(
    tmp_path: Path,
) -> None:
    more = ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusAngle")
    other = ("rlnDefocusU", "rlnOpticsGroup", "rlnImageName")
    first = part(tmp_path, "a", columns=more, values=("1", "9000", "5"))
    third = part(tmp_path, "c")
    for side in ("kept", "discarded", "review"):  # the same rows in another order of columns
        table = starfile.read(third.folder / f"{side}.star", always_dict=True)["particles"]
        rows = [f"8000 1 {name}" for name in table["rlnImageName"]]
        star(third.folder / f"{side}.star", other, rows, ("1 first 1.06 300",))
    tables = merged(tmp_path, first, part(tmp_path, "b"), third)
    assert list(tables["particles"].columns) == ["rlnImageName", "rlnOpticsGroup", "rlnDefocusU"]
    values = zip(
        tables["particles"]["rlnImageName"].str[7:], tables["particles"]["rlnDefocusU"], strict=True
    )
    assert set(values) == {("a.mrcs", 9000), ("b.mrcs", 9000), ("c.mrcs", 8000)}


@pytest.mark.long
def test_bare_stacks_do_not_take_columns_from_the_others(tmp_path: Path) -> None:
    tables = merged(tmp_path, part(tmp_path, "a"), part(tmp_path, "b", bare=True))
    assert "rlnDefocusU" in tables["particles"].columns
    assert len(tables["particles"]) == 2
    bare = starfile.read(tmp_path / "kept-bare.star", always_dict=True)
    assert len(bare["particles"]) == 2
    alone = merged(tmp_path, part(tmp_path, "c", bare=True))
    assert len(alone["particles"]) == 2
    assert not (tmp_path / "kept-bare.star").exists()


def test_what_people_said_goes_where_they_said(tmp_path: Path) -> None:
    merged(tmp_path, part(tmp_path, "a", overrides={0: False, 2: True}), part(tmp_path, "b"))
    sides = {
        side: starfile.read(tmp_path / f"{side}.star", always_dict=True)["particles"][
            "rlnImageName"
        ].tolist()
        for side in ("kept", "discarded", "review")
    }
    assert sorted(sides["kept"]) == [
        "000001@b.mrcs", "000003@a.mrcs", "000004@a.mrcs", "000004@b.mrcs",
    ]  # fmt: skip
    assert sorted(sides["discarded"]) == ["000001@a.mrcs", "000002@a.mrcs", "000002@b.mrcs"]
    assert sides["review"] == ["000003@b.mrcs"]


def test_optics_that_extraction_leaves_out_are_found_in_the_project(tmp_path: Path) -> None:
    job = tmp_path / "MotionCorr/job002"
    job.mkdir(parents=True)
    (job / "corrected_micrographs.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnVoltage #3\n"
        "_rlnSphericalAberration #4\n_rlnMicrographPixelSize #5\nmine 1 300 2.7 0.8\n"
    )
    columns = ("rlnImageName", "rlnOpticsGroup", "rlnMicrographName")
    stack = part(tmp_path, "a", columns=columns, values=("1", "MotionCorr/job002/a.mrc"), optics=())
    (row,) = merged(tmp_path, stack)["optics"].to_dict("records")
    assert (row["rlnVoltage"], row["rlnSphericalAberration"]) == (300, 2.7)
    assert row["rlnImagePixelSize"] == pytest.approx(2.5), "of the stack, not of the micrograph"
    assert (row["rlnImageSize"], "rlnMicrographPixelSize" in row) == (16, False)


def test_what_no_header_tells_is_left_out_and_named(tmp_path: Path) -> None:
    stack = part(tmp_path, "a", bare=True)
    for side in ("kept", "discarded", "review"):  # as earlier versions wrote them
        file = stack.folder / f"{side}.star"
        text = file.read_text().replace(
            "_rlnImagePixelSize #5",
            "_rlnImagePixelSize #5\n_rlnVoltage #6\n_rlnSphericalAberration #7",
        )
        file.write_text(text.replace("2.500000\n", "2.500000 0 0\n"))
    assert "2.500000 0 0" in file.read_text()
    unknown = Merger(tmp_path, tmp_path).merge([stack]).unknown
    assert unknown == {"kept.star": ("rlnVoltage", "rlnSphericalAberration")}
    tables = starfile.read(tmp_path / "kept.star", always_dict=True)
    assert not set(tables["optics"].columns) & {"rlnVoltage", "rlnSphericalAberration"}
    assert tables["optics"]["rlnImagePixelSize"].tolist() == [2.5]
    first = (tmp_path / "kept.star").read_text().splitlines()[0]
    assert first.endswith("data_optics: rlnVoltage rlnSphericalAberration")


def test_a_bare_stack_of_which_nothing_was_kept_has_its_pixel_size(tmp_path: Path) -> None:
    stack = part(tmp_path, "a", bare=True, verdicts=("discard",) * 4)
    unknown = Merger(tmp_path, tmp_path).merge([stack]).unknown
    assert unknown == {"kept.star": ("rlnVoltage", "rlnSphericalAberration")}


def test_no_optics_are_made_up_for_a_group_that_nothing_describes(tmp_path: Path) -> None:
    unknown = part(tmp_path, "a", values=("7", "9000"), optics=())
    whole = ("1 first 1.06 300 2.7",)
    parts = [part(tmp_path, "b", optics=whole), unknown, part(tmp_path, "c", bare=True)]
    result = Merger(tmp_path, tmp_path).merge(parts)
    assert sum(result.counts.values()) == 12
    assert result.unknown == {
        "kept-no-optics.star": ("rlnVoltage", "rlnSphericalAberration", "rlnImagePixelSize"),
        "kept-bare.star": ("rlnVoltage", "rlnSphericalAberration"),
    }
    tables = starfile.read(tmp_path / "kept.star", always_dict=True)
    assert tables["optics"]["rlnSphericalAberration"].tolist() == [2.7]
    tables = starfile.read(tmp_path / "kept-no-optics.star", always_dict=True)
    assert list(tables) == ["particles"]
    assert tables["particles"]["rlnOpticsGroup"].tolist() == [7, 7]
    assert tables["particles"]["rlnDefocusU"].tolist() == [9000, 9000]


def test_a_table_about_other_stacks_gives_no_optics(tmp_path: Path) -> None:
    """Before, a group was taken from any particles.star above the stack that had its number."""
    optics, columns = ("7 foreign 9.9 120 0.01",), ("rlnImageName", "rlnOpticsGroup")
    star(tmp_path / "particles.star", columns, ["1@other.mrcs 7"], optics)
    stack = part(tmp_path, "a", values=("7", "9000"), optics=())
    result = Merger(tmp_path, tmp_path).merge([stack])
    assert "rlnVoltage" in result.unknown["kept.star"]
    star(tmp_path / "particles.star", columns, ["1@other.mrcs 7", "1@a.mrcs 7"], optics)
    (row,) = merged(tmp_path, stack)["optics"].to_dict("records")
    assert row["rlnVoltage"] == 120


def test_a_number_that_one_group_lacks_is_no_zero(tmp_path: Path) -> None:
    first, second = part(tmp_path, "a"), part(tmp_path, "b", optics=("1 first 0.85 300",))
    for side in ("kept", "discarded", "review"):
        file = first.folder / f"{side}.star"
        text = file.read_text().replace("_rlnVoltage #4", "_rlnVoltage #4\n_rlnBeamTiltX #5")
        file.write_text(text.replace("1.06 300", "1.06 300 0.4"))
    optics = merged(tmp_path, first, second)["optics"]
    assert "rlnBeamTiltX" not in optics.columns


def test_rows_of_relion_30_tell_their_optics_themselves(tmp_path: Path) -> None:
    columns = ["rlnImageName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
    columns += ["rlnDetectorPixelSize", "rlnMagnification"]
    values = ("300", "2.7", "0.1", "5.0", "20000")
    stack = part(tmp_path, "a", columns=columns, values=values, optics=())
    (row,) = merged(tmp_path, stack)["optics"].to_dict("records")
    assert (row["rlnVoltage"], row["rlnSphericalAberration"]) == (300, 2.7)
    assert row["rlnImagePixelSize"] == 2.5


def test_rows_that_got_lost_are_noticed(tmp_path: Path) -> None:
    stack = part(tmp_path, "a")
    kept = stack.folder / "kept.star"
    kept.write_text(kept.read_text().replace("000004@a.mrcs 1 9000\n", ""))
    with pytest.raises(InternalError, match="4 rows were judged, 3 merged"):
        Merger(tmp_path, tmp_path).merge([stack])


def test_an_empty_session_has_empty_sides(tmp_path: Path) -> None:
    assert merged(tmp_path) is not None
    for side in ("kept", "discarded", "review"):
        assert "_rlnImageName" in (tmp_path / f"{side}.star").read_text()
