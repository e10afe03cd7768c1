"""cryoSPARC's tables in both forms, and hostile bytes in their place."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoray.errors import FormatError
from cryoray.formats.cryosparc import open_cs
from cryoray.formats.csfile import CsTable, read_table
from tests.formats.files import cs_particles, write_cs

REAL = (
    "4k_dataset",
    "cryosparc_J2_particles_exported",
    "cryosparc_P12_J24_001_particles",
    "empiar_10076_7",
)


def csdat(table: np.ndarray) -> bytes:
    """A table as cryosparc-tools writes CSDAT."""
    made = io.BytesIO()
    Dataset(table).save(made, format=CSDAT_FORMAT)
    return made.getvalue()


def npy(table: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, table, allow_pickle=False)
    return made.getvalue()


MAIN, PASSED = cs_particles(5)
FORMS = {"npy": npy(MAIN), "csdat": csdat(MAIN), "npy2": npy(PASSED), "csdat2": csdat(PASSED)}


def same(table: CsTable, array: np.ndarray) -> None:
    """Every column is what another reader says it is."""
    assert list(table.fields) == list(array.dtype.names or ())
    assert len(table) == len(array)
    columns = table.read(list(table.fields))
    for name, column in columns.items():
        expected = array[name]
        if expected.dtype.kind == "S":
            expected = np.array([text.decode() for text in expected.tolist()], object)
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize("form", ["npy", "csdat"])
def test_both_forms_are_read_and_some_rows_written_with_their_dtypes_and_order(
    tmp_path: Path, form: str
) -> None:
    (tmp_path / "x.cs").write_bytes(FORMS[form])
    table = read_table(tmp_path / "x.cs")
    assert table.form == form
    same(table, MAIN)
    rows = np.array([0, 2, 3])
    table.write_rows(rows, tmp_path / "some.cs")
    some = read_table(tmp_path / "some.cs")
    assert dict(some.fields) == dict(table.fields)
    same(some, MAIN[rows])
    theirs = Dataset.load(tmp_path / "some.cs")  # cryoSPARC's own reader
    assert theirs["uid"].tolist() == MAIN["uid"][rows].tolist()
    assert theirs["blob/path"].tolist() == ["J19/extract/a.mrc"] * 3
    np.testing.assert_array_equal(theirs["alignments2D/shift"], MAIN["alignments2D/shift"][rows])
    table.write_rows(rows[:0], tmp_path / "none.cs")
    assert len(read_table(tmp_path / "none.cs")) == len(Dataset.load(tmp_path / "none.cs")) == 0
    if form == "npy":
        loaded = np.load(tmp_path / "some.cs", allow_pickle=False)
        assert loaded.dtype == MAIN.dtype
        assert loaded.tobytes() == MAIN[rows].tobytes()


def test_a_csdat_without_compression_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "x.cs").write_bytes(b"".join(Dataset(MAIN).stream(compression=None)))
    same(read_table(tmp_path / "x.cs"), MAIN)


def test_headers_longer_than_64_kb_are_kept(tmp_path: Path) -> None:
    fields = [("uid", "<u8"), *((f"alignments_class_{i}/alpha_min", "<f4") for i in range(3000))]
    table = np.ones(3, fields)
    with pytest.warns(UserWarning, match="format 2.0"):
        path = write_cs(tmp_path / "x.cs", table)
    read_table(path).write_rows(np.array([1]), tmp_path / "y.cs")
    assert np.load(tmp_path / "y.cs", max_header_size=1 << 20).dtype == table.dtype


class Bomb:
    """What says so if anything unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_what_needs_unpickling_is_refused_and_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.zeros(1, [("uid", "<u8"), ("blob/path", "O")])
    objects["blob/path"] = Bomb()
    with Path("objects.cs").open("wb") as file:
        np.save(file, objects, allow_pickle=True)
    Path("pickled.cs").write_bytes(pickle.dumps({"uid": Bomb()}))
    Path("array.cs").write_bytes(FORMS["npy"][:6] + b"\1\0\x40\0" + b"{'descr': '|O'".ljust(64))
    np.save(Path("plain.npy"), np.array([Bomb()], object), allow_pickle=True)
    Path("plain.npy").rename("plain.cs")
    for name in ("objects.cs", "pickled.cs", "plain.cs"):
        with pytest.raises(FormatError, match=r"only unpickling could read.*; save it again with"):
            read_table(Path(name))
    with pytest.raises(FormatError, match="header that makes no sense"):
        read_table(Path("array.cs"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a cryoSPARC table: it begins like neither NPY nor CSDAT"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\x93NUMPY", "is not an NPY file: its header is cut short"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "is not an NPY file: its header is cut short"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "is not an NPY file: its header is cut short"),
        (b"\x95CSDAT\xff\xff\xff\xff{}", "is cut short in its header"),
        (b"\x95CSDAT\x02\x00\x00\x00{}", "has a CSDAT header that makes no sense"),
        (npy(np.arange(3.0)), "is an array of numbers, not a table of named columns"),
        (npy(np.zeros(2, [("id", "<u8")])), "has no column uid of 64-bit numbers"),
        (npy(np.zeros((2, 2), [("uid", "<u8")])), "is an array of numbers, not a table"),
        (FORMS["npy"][:-1], r"is shorter than its header says: [\d,]+ bytes, [\d,]+ expected"),
        (FORMS["csdat"][:900], "is (damaged|cut short) in its"),
    ],
)
def test_what_is_no_table_is_told_in_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "x.cs").write_bytes(content)
    with pytest.raises(FormatError, match=rf"x\.cs: {sentence}"):
        read_table(tmp_path / "x.cs")


@given(rows=st.integers(1000, 1 << 62), form=st.sampled_from(["npy", "csdat"]))
@pytest.mark.long
def test_a_header_that_lies_about_its_rows_allocates_nothing(
    rows: int, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"lies-{form}.cs"
    if form == "npy":
        start = FORMS["npy"][:8]
        length = struct.unpack_from("<H", FORMS["npy"], 8)[0]
        text = FORMS["npy"][10 : 10 + length].replace(b"(5,)", f"({rows},)".encode()).strip()
        path.write_bytes(start + struct.pack("<H", len(text)) + text + FORMS["npy"][10 + length :])
    else:
        length = struct.unpack_from("<I", FORMS["csdat"], 6)[0]
        header = json.loads(FORMS["csdat"][10 : 10 + length]) | {"length": rows}
        text = json.dumps(header).encode()
        body = FORMS["csdat"][10 + length :]
        path.write_bytes(b"\x95CSDAT" + struct.pack("<I", len(text)) + text + body)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"is shorter than its header says|is damaged in its"):
            read_table(path).read(["uid", "blob/path"])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def read_all(path: Path) -> None:
    """All that is ever done with a table: read, opened as particles and classes, some rows written."""
    table = read_table(path)
    table.read(list(table.fields))
    table.write_rows(np.arange(0, len(table), 2), path.with_name("some.cs"))


def shake(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    for read in (
        read_all,
        lambda file: open_cs(file, "particle"),
        lambda file: open_cs(file, "class2d"),
    ):
        with suppress(FormatError):
            read(path)


def mutated(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(list(FORMS.values()))))
    for at, byte in draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
    ):
        content[at] = byte
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


MUTATED = st.composite(mutated)()
RAW = st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"\x95CSDAT"]),
    st.binary(max_size=300),
)


@settings(max_examples=150)
@given(content=MUTATED | RAW)
@pytest.mark.long
def test_nothing_but_our_own_error_escapes_whatever_the_bytes(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shake(content, tmp_path_factory.getbasetemp() / "shaken.cs")


@pytest.mark.slow
@settings(max_examples=10_000)
@given(content=MUTATED | RAW)
def test_nothing_but_our_own_error_escapes_ten_thousand_times(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shake(content, tmp_path_factory.getbasetemp() / "shaken.cs")


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_tables_are_what_numpy_and_cryosparc_tools_say(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    path = real_data / f"formats/cryosparc/{name}.cs"
    array = np.load(path, allow_pickle=False)
    table = read_table(path)
    same(table, array)
    rows = np.arange(0, len(array), 3)
    table.write_rows(rows, tmp_path / "some.cs")
    some = np.load(tmp_path / "some.cs", allow_pickle=False)
    assert some.dtype == array.dtype
    assert some.tobytes() == array[rows].tobytes()
    (tmp_path / "x.cs").write_bytes(csdat(array))
    again = read_table(tmp_path / "x.cs")
    same(again, array)
    again.write_rows(rows, tmp_path / "y.cs")
    theirs = Dataset.load(tmp_path / "y.cs")
    assert theirs["uid"].tolist() == array["uid"][rows].tolist()
