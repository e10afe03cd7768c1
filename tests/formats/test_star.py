"""STAR files: every dialect parsed, every row given back as it was."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoray.errors import FormatError
from cryoray.formats import star
from cryoray.formats.star import Block, as_objects, parse


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def copied(block: Block) -> str:
    out = io.BytesIO()
    block.copy(out)
    return out.getvalue().decode()


MESSY = """# comment
 data_second

loop_ # of two
_rlnName #1 [the name]
\t_rlnValue #2

'two words'  1.5
# a comment, then a blank line

"it's"\t-nan
O'Brien/data_1.mrc inf
'' none extra fields
short
data_

_key   value
_quoted "a # b"   # a comment
_alone

data_empty

loop_
_rlnX #1
data_nothing
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_a_messy_file(
    tmp_path: Path, end: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(star, "_PIECE", piece)
    file = parse(written(tmp_path, MESSY.replace("\n", end)))
    assert list(file) == ["second", "", "empty", "nothing"]
    loop = file["second"]
    assert loop.columns == ("rlnName", "rlnValue")
    assert loop.column("rlnName").tolist() == [
        "two words",
        "it's",
        "O'Brien/data_1.mrc",
        "",
        "short",
    ]
    np.testing.assert_array_equal(loop.numbers("rlnValue"), [1.5, np.nan, np.inf, np.nan, np.nan])
    assert loop.read(["rlnName"]).short.tolist() == [4]
    assert loop.row_text(1) == '"it\'s"\t-nan'
    assert loop.fields(3) == ["", "none", "extra", "fields"]
    named = file[""]
    assert not named.is_loop
    assert dict(zip(named.columns, named.fields(0), strict=True)) == {
        "key": "value",
        "quoted": "a # b",
        "alone": "",
    }
    assert (len(loop), len(named), len(file["empty"]), len(file["nothing"])) == (5, 1, 0, 0)
    assert file["empty"].column("rlnX").tolist() == []
    assert copied(loop).splitlines()[-5:] == [
        "'two words'  1.5",
        '"it\'s"\t-nan',
        "O'Brien/data_1.mrc inf",
        "'' none extra fields",
        "short",
    ]
    assert "\r" not in copied(loop) + copied(named)


def test_plain_rows_around_comments_keep_their_places(tmp_path: Path) -> None:
    rows = [f"  {i}   name_{i} " for i in range(50)]
    text = "data_x\nloop_\n_a\n_b\n" + "\n# note 1 2\n\n".join(rows)
    loop = parse(written(tmp_path, text))["x"]
    assert loop.column("b").tolist() == [f"name_{i}" for i in range(50)]
    np.testing.assert_array_equal(loop.numbers("a"), np.arange(50))


field = st.one_of(
    st.floats().map(lambda value: f"{value:.6g}"),
    st.integers().map(str),
    st.text("ab1.-@/'\"#_é→𝛼", min_size=1, max_size=8).filter(
        lambda text: text[0] not in "'\"#_" and not text.startswith(("data_", "loop_"))
    ),
)


@settings(max_examples=30, deadline=None)
@given(
    table=st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(field, min_size=width, max_size=width), min_size=1, max_size=5
        )
    ),
    gap=st.sampled_from([" ", "\t", "   "]),
    lead=st.sampled_from(["", "  "]),
    tail=st.sampled_from(["", " "]),
    piece=st.sampled_from([16, 64, 1 << 20]),
)
@pytest.mark.long
def test_rows_come_back_as_they_were_written(
    table: list[list[str]],
    gap: str,
    lead: str,
    tail: str,
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lines = [lead + gap.join(row) + tail for row in table]
    head = [f"_column{i} #{i + 1}" for i in range(len(table[0]))]
    path = tmp_path_factory.getbasetemp() / "round.star"
    path.write_text("\n".join(["data_round", "", "loop_", *head, *lines, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star, "_PIECE", piece)
        block = parse(path)["round"]
        strings = block.read(block.columns).strings
        for i, name in enumerate(block.columns):
            assert as_objects(strings[name]).tolist() == [row[i] for row in table]
        assert [block.row_text(i) for i in range(len(block))] == lines
        out = io.BytesIO()
        block.copy_rows(np.arange(0, len(table), 2), out)
        assert out.getvalue().decode().split("\n")[:-1] == lines[::2]
        np.testing.assert_array_equal(
            block.numbers("column0"), [star._float(row[0]) for row in table]
        )
        again = copied(block)
        path.write_text("# made again\n" + again)
        assert copied(parse(path)["round"]) == again


def test_a_column_named_twice_is_the_first_of_them(tmp_path: Path) -> None:
    file = parse(written(tmp_path, "data_x\nloop_\n_a\n_a\n1 2\n3 4\ndata_y\n_b 5\n_b 6\n"))
    read = file["x"].read(["a", "a"], ["a", "a"])
    assert as_objects(read.strings["a"]).tolist() == ["1", "3"]
    np.testing.assert_array_equal(read.numbers["a"], [1, 3])
    assert file["y"].column("b").tolist() == ["5"]


def test_no_columns_are_read_of_a_table_where_none_are_asked_for(tmp_path: Path) -> None:
    read = parse(written(tmp_path, "data_x\nloop_\n_a\n_b\n1 2\n3 4\n"))["x"].read()
    assert (read.strings, read.numbers, len(read.short)) == ({}, {}, 0)


def test_a_second_loop_in_a_table_is_not_taken_for_rows(tmp_path: Path) -> None:
    file = parse(written(tmp_path, "data_x\nloop_\n_a\n1\n\nloop_\n_b\n2\ndata_y\n_c 3\n"))
    with pytest.raises(FormatError, match="has a second loop in its table data_x, which RELION"):
        file["x"].numbers("a")
    assert file["y"].fields(0) == ["3"]


def test_a_thousand_tables_are_only_looked_at_by_name(tmp_path: Path) -> None:
    table = "data_class_{}\n\nloop_\n_rlnSpectralIndex #1\n" + "1\n" * 20
    path = written(tmp_path, "".join(table.format(i) for i in range(3000)) + "data_last\n_a 1\n")
    file = parse(path)
    assert len(file) == 3001
    assert file["last"].fields(0) == ["1"]
    assert "_rows" not in file["class_7"].__dict__


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is no STAR file: it has no line that begins with data_"),
        (b"just words\nfrom data_ to data_\n", "is no STAR file: it has no line that begins"),
        (b"\x00\x01data_\n", "is no STAR file: it is not text"),
        (b"\x93NUMPY\x01\x00", "is a cryoSPARC or numpy table; give a RELION"),
    ],
)
def test_what_is_no_star_file_is_told_in_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(FormatError, match=f"^{path}: {sentence}"):
        parse(path)


def test_reading_what_is_not_there_or_changed_or_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such file"):
        parse(tmp_path / "absent.star")
    path = written(tmp_path, "data_x\nloop_\n_a\n1\n")
    block = parse(path)["x"]
    with pytest.raises(FormatError, match="has no column b in its table data_x"):
        block.numbers("b")
    path.write_text("data_x\nloop_\n_a\n1\n2\n")
    with pytest.raises(FormatError, match="changed while it was being read"):
        block.numbers("a")
    path = written(tmp_path, "data_x\nloop_\n_a\nå.mrc\n".encode("latin-1"))
    with pytest.raises(FormatError, match="row 1: is not UTF-8 text"):
        parse(path)["x"].column("a")
    assert parse(path)["x"].fields(0) == ["\ufffd.mrc"]


@pytest.mark.real
def test_real_files_survive_being_written(real_data: Path, tmp_path: Path) -> None:
    for original in sorted(real_data.glob("formats/star/**/*.star")):
        if original.name == "sample.star":  # its second loop is refused
            continue
        first = parse(original)
        with (tmp_path / "copy.star").open("wb") as out:
            for block in first.blocks:
                block.copy(out)
                out.write(b"\n")
        second = parse(tmp_path / "copy.star")
        assert [copied(block) for block in second.blocks] == [
            copied(block) for block in first.blocks
        ]
