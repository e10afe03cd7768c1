"""Every side of a choice on disk, row for row as the source has it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import starfile
import yaml
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoray.errors import FormatError, InternalError
from cryoray.formats.source import Source, open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import PARTITIONS, write_verdicts
from cryoray.records import QUARANTINE_SCHEMA, VERDICTS_SCHEMA, RowCounts
from tests.examples import verdicts_of
from tests.formats.files import (
    cs_particles,
    write_cs,
    write_cs_job,
    write_particles,
    write_stack,
)

FATES = tuple(PARTITIONS)


def sides(source: Source, fates: list[str]) -> dict[str, list[str]]:
    return {
        file: [image for image, fate in zip(source.images, fates, strict=True) if fate == name]
        for name, file in PARTITIONS.items()
    }


@settings(max_examples=25, deadline=None)
@given(fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=8))
def test_every_row_of_a_star_file_is_on_its_side_verbatim(
    fates: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("verdicts")
    names = [
        f"'{i + 1:06d}@a b/x.mrcs'" if i == 3 else f"{i + 1}@x.mrcs" for i in range(len(fates))
    ]
    path = write_particles(folder / "particles.star", names, [1 + i % 2 for i in range(len(names))])
    path.write_text("data_general\n\n_rlnLensName 1\n" + path.read_text())
    source = open_source(path)
    assert write_verdicts(folder / "out", source, verdicts_of(fates)) == RowCounts(
        rows_in=len(fates),
        rows_out=len(fates) - fates.count("quarantined"),
        quarantined=fates.count("quarantined"),
    )
    original = parse(path)
    rows = [original["particles"].row_text(row) for row in range(len(fates))]
    for name, file in PARTITIONS.items():
        written = parse(folder / f"out/{file}.star")
        assert list(written) == ["general", "optics", "particles"]
        assert written["general"].fields(0) == ["1"]
        copies = [written["particles"].row_text(i) for i in range(len(written["particles"]))]
        assert copies == [row for row, fate in zip(rows, fates, strict=True) if fate == name]
        assert [written["optics"].fields(i) for i in (0, 1)] == [
            original["optics"].fields(i) for i in (0, 1)
        ]
        text = (folder / f"out/{file}.star").read_bytes()
        assert text.count(b"\n# version 30001\n\ndata_") == 3
        assert b"\r" not in text


def test_the_tables_are_in_input_order_and_say_where_to_look(tmp_path: Path) -> None:
    path = write_particles(tmp_path / "particles.star", [f"{i}@x.mrcs" for i in (1, 2, 3, 4)])
    source = open_source(path)
    write_verdicts(
        tmp_path / "out", source, verdicts_of(["keep", "quarantined", "review", "quarantined"])
    )
    verdicts = pq.read_table(tmp_path / "out/verdicts.parquet")
    assert verdicts.schema.equals(VERDICTS_SCHEMA)
    assert verdicts["image"].to_pylist() == ["1@x.mrcs", "3@x.mrcs"]
    quarantine = pq.read_table(tmp_path / "out/quarantine.parquet")
    assert quarantine.schema.equals(QUARANTINE_SCHEMA)
    assert quarantine.to_pylist() == [
        {"image": f"{row}@x.mrcs", "file": str(path), "row": row, "reason": f"reason {row - 1}"}
        for row in (2, 4)
    ]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [
            "verdicts.parquet",
            "quarantine.parquet",
            *(f"{name}.star" for name in PARTITIONS.values()),
        ]
    )


ODD = {
    b"m\xe9.mrcs": "UTF-8",
    b"b\nc.mrcs": "the character",
    b"d' \" e.mrcs": "both kinds of quotes",
}


def test_stacks_whose_names_no_star_file_can_hold_are_set_aside_and_the_rest_is_written(
    tmp_path: Path,
) -> None:
    write_stack(tmp_path / "a.mrcs", 2)
    for name in ODD:
        write_stack(tmp_path / os.fsdecode(name), 3)
    source = open_source(tmp_path)
    assert sorted(source.problems) == [
        row for row in range(11) if source.images[row][7:] != "a.mrcs"
    ]
    for name, why in ODD.items():
        shown = os.fsdecode(name).splitlines()[0][:1]
        reasons = {
            source.problems[row] for row in source.problems if source.images[row][7] == shown
        }
        assert len(reasons) == 1
        assert why in reasons.pop()
    fates = ["quarantined" if row in source.problems else "keep" for row in range(11)]
    out = tmp_path / os.fsdecode(b"\xfc")
    row_counts = write_verdicts(out, source, verdicts_of(fates))
    assert row_counts == RowCounts(rows_in=11, rows_out=2, quarantined=9)
    assert len(parse(out / "quarantined.star")["particles"]) == 9
    assert open_source(out / "kept.star").stacks == (tmp_path / "a.mrcs",)
    with (out / "quarantine.parquet").open("rb") as file:
        assert pq.read_table(file).num_rows == 9


def test_a_table_in_a_folder_of_any_name_is_judged_and_its_verdicts_are_written(
    tmp_path: Path,
) -> None:
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    path = write_particles(folder / "particles.star", ["1@x.mrcs", "2@x.mrcs"])
    write_stack(folder / "x.mrcs", 2)
    source = open_source(path)
    assert source.name == r"f\xfcr"
    write_verdicts(folder / "out", source, verdicts_of(["keep", "quarantined"]))
    with (folder / "out/quarantine.parquet").open("rb") as file:
        assert pq.read_table(file)["file"].to_pylist() == [f"{tmp_path}/f\\xfcr/particles.star"]


def test_a_malformed_row_goes_to_the_quarantined_as_it_stands(tmp_path: Path) -> None:
    path = write_particles(tmp_path / "particles.star", ["1@x.mrcs", "2@x.mrcs", "3@x.mrcs"])
    path.write_text(path.read_text().replace("mic1.mrc", "My Grid/mic1.mrc"))
    source = open_source(path)
    assert list(source.problems) == [1]
    write_verdicts(tmp_path / "out", source, verdicts_of(["keep", "quarantined", "keep"]))
    original = parse(path)["particles"]
    assert parse(tmp_path / "out/quarantined.star")["particles"].row_text(0) == original.row_text(1)
    assert not open_source(tmp_path / "out/kept.star").problems
    expected = "has 6 fields, and its table 5 columns: a name with blanks must stand in quotes"
    assert source.problems == {1: expected}


def test_a_particle_written_as_single_values_is_on_its_side(tmp_path: Path) -> None:
    path = tmp_path / "particles.star"
    path.write_text("data_particles\n_rlnImageName 1@x.mrcs\n_rlnMicrographName 'My Grid/m.mrc'\n")
    source = open_source(path)
    write_verdicts(tmp_path / "out", source, verdicts_of(["keep"]), star_columns=("score",))
    kept = open_source(tmp_path / "out/kept.star")
    assert kept.micrograph.tolist() == ["My Grid/m.mrc"]
    assert kept.metadata["rlnCryorayScore"].tolist() == [1]
    discarded = parse(tmp_path / "out/discarded.star")["particles"]
    assert (len(discarded), discarded.columns[:2]) == (0, ("rlnImageName", "rlnMicrographName"))


def test_scores_follow_the_rows_own_fields_on_request(tmp_path: Path) -> None:
    names = [f"{i}@x.mrcs" for i in (1, 2, 3, 4)]
    source = open_source(write_particles(tmp_path / "particles.star", names))
    scores = {2: 0.25, 0: 0.75, 3: np.nan}
    judged = verdicts_of(["keep", "quarantined", "keep", "discard"])
    judged = judged.with_column("class_score", np.array([scores[row] for row in judged.rows]))
    write_verdicts(tmp_path / "out", source, judged, star_columns=("score", "class_score"))
    kept = parse(tmp_path / "out/kept.star")["particles"]
    original = parse(source.path)["particles"]
    assert kept.columns == (*original.columns, "rlnCryorayScore", "rlnCryorayClassScore")
    assert kept.row_text(1) == original.row_text(2) + " 0.500000 0.250000"
    lost_side = parse(tmp_path / "out/quarantined.star")["particles"]
    assert lost_side.row_text(0) == original.row_text(1) + " nan nan"
    again = open_source(tmp_path / "out/kept.star")
    np.testing.assert_array_equal(again.metadata["rlnCryorayClassScore"], [0.75, 0.25])
    verdicts = pq.read_table(tmp_path / "out/verdicts.parquet")
    assert verdicts.schema.names == [*VERDICTS_SCHEMA.names, "class_score"]
    assert verdicts["class_score"].to_pylist()[:2] == [0.75, 0.25]
    # A second run's score stands beside the first's.
    write_verdicts(tmp_path / "two", again, verdicts_of(["keep"] * 2), star_columns=("score",))
    columns = parse(tmp_path / "two/kept.star")["particles"].columns
    assert columns[-3:] == ("rlnCryorayScore", "rlnCryorayClassScore", "rlnCryorayScore2")


def test_crlf_is_read_and_lf_is_written(tmp_path: Path) -> None:
    names = ["1@x.mrcs", "2@x.mrcs"]
    source = open_source(write_particles(tmp_path / "particles.star", names, end="\r\n"))
    write_verdicts(tmp_path, source, verdicts_of(["keep", "discard"]))
    assert b"\r" not in (tmp_path / "kept.star").read_bytes()
    assert open_source(tmp_path / "kept.star").images.tolist() == names[:1]


def test_a_file_of_relion_30_stays_one_so_that_relion_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "old.star"
    path.write_text("data_images\nloop_\n_rlnImageName #1\n1@x.mrcs\n2@x.mrcs\n")
    source = open_source(path)
    write_verdicts(tmp_path, source, verdicts_of(["keep", "discard"]))
    assert (tmp_path / "discarded.star").read_text() == (
        "\ndata_images\n\nloop_\n_rlnImageName #1\n2@x.mrcs\n\n"
    )


def test_classes_become_one_table_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "run_it025_model.star"
    path.write_text(
        "data_model_general\n_rlnNrClasses 2\n\ndata_model_classes\nloop_\n_rlnReferenceImage #1\n"
        "1@c.mrcs\n2@c.mrcs\n\ndata_model_class_1\nloop_\n_rlnSpectralIndex\n0\n"
    )
    source = open_source(path, "class2d")
    write_verdicts(tmp_path, source, verdicts_of(["discard", "keep"]))
    assert list(parse(tmp_path / "kept.star")) == [""]
    assert open_source(tmp_path / "kept.star", "class2d").images.tolist() == ["2@c.mrcs"]


def test_bare_stacks_become_a_relion_31_file(tmp_path: Path) -> None:
    write_stack(tmp_path / "in/a.mrcs", 2, pixel_size=1.5)
    write_stack(tmp_path / "in/b b.mrcs", 2, side=6, pixel_size=3.0)
    (tmp_path / "in/c.mrcs").write_text("nothing")
    source = open_source(tmp_path / "in")
    write_verdicts(
        tmp_path / "out",
        source,
        verdicts_of(["keep", "discard", "review", "keep", "quarantined"]),
    )
    kept = open_source(tmp_path / "out/kept.star")
    assert kept.stacks == source.stacks[:2]
    assert kept.frame.tolist() == [0, 1]
    assert kept.pixel_size.tolist() == [1.5, 3.0]
    assert starfile.read(tmp_path / "out/kept.star")["optics"]["rlnImageSize"].tolist() == [8, 6]
    assert parse(tmp_path / "out/quarantined.star")["particles"].fields(0) == ["000001@c.mrcs", "1"]
    assert pq.read_table(tmp_path / "out/quarantine.parquet")["row"].to_pylist() == [1]


@pytest.mark.parametrize("form", ["npy", "csdat"])
def test_each_side_of_a_cryosparc_table_is_a_table_that_cryosparc_imports(
    tmp_path: Path, form: str
) -> None:
    path = write_cs_job(tmp_path)
    if form == "csdat":
        for table in path.parent.glob("*particles.cs"):
            Dataset.load(table).save(table, format=CSDAT_FORMAT)
    source = open_source(path)
    assert source.uid is not None
    fates = ["keep", "discard", "keep", "review", "quarantined", "keep"]
    row_counts = write_verdicts(tmp_path / "out", source, verdicts_of(fates))
    assert row_counts == RowCounts(rows_in=6, rows_out=5, quarantined=1)
    verdicts = pq.read_table(tmp_path / "out/verdicts.parquet")
    assert verdicts.schema.names[:3] == ["image", "uid", "score"]
    assert verdicts["uid"].to_pylist() == source.uid[[0, 1, 2, 3, 5]].tolist()
    before = Dataset.load(path).innerjoin(
        Dataset.load(path.with_name("J26_passthrough_particles.cs"))
    )
    for name, file in PARTITIONS.items():
        rows = [row for row, fate in enumerate(fates) if fate == name]
        made = Dataset.load(tmp_path / f"out/{file}.cs")
        joined = made.innerjoin(
            Dataset.load(tmp_path / f"out/passthrough_{file}.cs"), assert_no_drop=True
        )
        assert joined.fields() == before.fields()
        for field in before.fields():
            np.testing.assert_array_equal(joined[field], before[field][rows])
        group = yaml.safe_load((tmp_path / f"out/{file}.csg").read_text())
        assert group["results"]["blob"] == {
            "metafile": f">{file}.cs",
            "num_items": len(rows),
            "type": "particle.blob",
        }
        assert group["results"]["ctf"]["metafile"] == f">passthrough_{file}.cs"
        if rows:  # and it is a source again
            again = open_source(tmp_path / f"out/{file}.csg")
            assert again.images.tolist() == source.images[rows].tolist()
            assert again.stacks == source.stacks
            assert again.metadata["rlnDefocusU"].tolist() == [15000.0 + row for row in rows]
    if form == "npy":
        assert np.load(tmp_path / "out/kept.cs").dtype == np.load(path).dtype
    assert not list((tmp_path / "out").glob("*.star"))
    quarantine = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    assert (quarantine[0]["file"], quarantine[0]["row"]) == (str(path), 5)


def test_the_sides_of_a_cryosparc_table_are_written_for_relion_too(tmp_path: Path) -> None:
    source = open_source(write_cs_job(tmp_path))
    judged = verdicts_of(["keep", "discard", "keep", "review", "quarantined", "keep"])
    write_verdicts(tmp_path / "out", source, judged, star_columns=("score",), also_star=True)
    for file, rows in {"kept": [0, 2, 5], "discarded": [1], "quarantined": [4]}.items():
        side = starfile.read(tmp_path / f"out/{file}.star", always_dict=True)["particles"]
        assert [name[:6] for name in side["rlnImageName"]] == [f"{row + 1:06d}" for row in rows]
        assert np.isnan(side["rlnCryorayScore"]).all() == (file == "quarantined")


def test_what_a_table_names_beside_itself_is_found_beside_its_sides(tmp_path: Path) -> None:
    main, _ = cs_particles(3, ">J1/imported/a.mrcs")
    write_stack(tmp_path / "export/J1/imported/a.mrcs", 3)
    source = open_source(write_cs(tmp_path / "export/J9_particles_exported.cs", main))
    write_verdicts(tmp_path / "out", source, verdicts_of(["keep"] * 3))
    kept = open_source(tmp_path / "out/kept.cs")
    assert kept.stacks == (tmp_path / "out/J1/imported/a.mrcs",)
    assert kept.stacks[0].samefile(source.stacks[0])


def test_a_row_of_two_fates_is_our_fault(tmp_path: Path) -> None:
    source = open_source(write_particles(tmp_path / "particles.star", ["1@x.mrcs", "2@x.mrcs"]))
    judged = verdicts_of(["keep", "keep"]).and_quarantined([(1, "also this")])
    with pytest.raises(InternalError, match="judged twice, or judged and quarantined"):
        write_verdicts(tmp_path / "out", source, judged)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changed_meanwhile_is_not_copied(tmp_path: Path) -> None:
    path = write_particles(tmp_path / "particles.star", ["1@x.mrcs", "2@x.mrcs"])
    source = open_source(path)
    write_particles(path, ["2@x.mrcs", "1@x.mrcs"])
    with pytest.raises(FormatError, match="changed while its rows were judged"):
        write_verdicts(tmp_path / "out", source, verdicts_of(["keep", "keep"]))


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "relion5-project/Class2D/job010/run_it025_data.star",
        "particles-empiar10017/particles.star",
        "formats/star/localrec_relion1x/particles.star",
        "formats/star/cryodrgn/relion31.6opticsgroups.star",
    ],
)
def test_real_files_divide_into_files_that_starfile_reads(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    source = open_source(real_data / name)
    fates = np.random.default_rng(0).choice(FATES, len(source)).tolist()
    write_verdicts(tmp_path, source, verdicts_of(fates))
    whole = starfile.read(source.path, always_dict=True)
    for file, images in sides(source, fates).items():
        part = starfile.read(tmp_path / f"{file}.star", always_dict=True)
        assert list(part) == list(whole)
        table = next(table for table in part.values() if "rlnImageName" in table)
        assert table["rlnImageName"].tolist() == images
