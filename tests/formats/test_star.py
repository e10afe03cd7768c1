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
from cryoray.formats.star import Block, as_objects, parse, quoted


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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
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
    read = loop.read(["rlnName"], ["rlnValue"])
    assert read.malformed == {
        3: "has 4 fields, and its table 2 columns: a name with blanks must stand in quotes",
        4: "has 1 field, and its table 2 columns",
    }
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
    assert (read.strings, read.numbers, read.malformed) == ({}, {}, {})


@pytest.mark.parametrize("first", ["", "# version 30001\n"])
def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path, first: str) -> None:
    file = parse(written(tmp_path, f"\ufeff{first}data_x\nloop_\n_a\n1\n"))
    assert file["x"].numbers("a").tolist() == [1]


def test_lines_that_begin_to_end_otherwise_late_in_a_file_are_lines_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(star, "_PIECE", 16)
    text = "data_x\nloop_\n_a\n" + "1\n" * 50 + "2\r" * 50 + "data_y\r_b\t3\r"
    file = parse(written(tmp_path, text))
    assert file["x"].numbers("a").tolist() == [1] * 50 + [2] * 50
    assert file["y"].fields(0) == ["3"]


def test_a_field_of_a_megabyte_is_read(tmp_path: Path) -> None:
    long = "x" * (1 << 20)
    block = parse(written(tmp_path, f"data_x\nloop_\n_{long} #1\n_b #2\n{long} 7\n1 8\n"))["x"]
    assert block.columns == (long, "b")
    assert block.column(long).tolist() == [long, "1"]
    assert block.numbers("b").tolist() == [7, 8]


def test_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is text in UTF-16; convert it with `iconv"):
        parse(written(tmp_path, "data_x\n_a 1\n".encode("utf-16")))


MISSING = ("<NA>", "None", "nan", "NaN", '""', "''", "N/A", "null")


@pytest.mark.parametrize("word", MISSING)
@pytest.mark.parametrize("row", [0, 3, 5])
def test_a_word_for_a_missing_number_makes_no_column_text(
    tmp_path: Path, word: str, row: int
) -> None:
    values = [f"{number}.5" for number in range(6)]
    values[row] = word
    text = "data_x\nloop_\n_name\n_number\n_none\n" + "".join(
        f"mic{at} {value} {word}\n" for at, value in enumerate(values)
    )
    block = parse(written(tmp_path, text))["x"]
    assert block.numeric(block.columns) == ["number", "none"]
    read = block.read(["name"], ["number", "none"])
    expected = np.arange(6) + 0.5
    expected[row] = np.nan
    np.testing.assert_array_equal(read.numbers["number"], expected)
    assert np.isnan(read.numbers["none"]).all()
    assert read.texts == {}


def test_what_is_neither_a_number_nor_a_missing_one_is_named(tmp_path: Path) -> None:
    rows = [f"{number} {number},5" for number in range(40)]
    rows[7] = "bad 1,5"
    block = parse(written(tmp_path, "data_x\nloop_\n_a\n_b\n" + "\n".join(rows) + "\n"))["x"]
    assert block.numeric(block.columns) == ["a", "b"]
    read = block.read(numbers=["a", "b"])
    assert read.texts == {"a": (7, "bad"), "b": (0, "0,5")}
    assert np.flatnonzero(np.isnan(read.numbers["a"])).tolist() == [7]


@pytest.mark.parametrize("piece", [8, 1 << 20])
@pytest.mark.parametrize("quote", ["", "'"])
def test_a_row_with_too_many_or_too_few_fields_gives_no_number(
    tmp_path: Path, piece: int, quote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(star, "_PIECE", piece)
    rows = [
        f"{quote}m0.mrc{quote} 1 9000",
        "My Grid/m1.mrc 1 9001",
        "m2.mrc 1",
        "m3.mrc 1 9003 # hm",
    ]
    block = parse(written(tmp_path, "data_x\nloop_\n_m\n_g\n_d\n" + "\n".join(rows) + "\n"))["x"]
    read = block.read(["m"], ["g", "d"])
    assert read.malformed == {
        1: "has 4 fields, and its table 3 columns: a name with blanks must stand in quotes",
        2: "has 2 fields, and its table 3 columns",
    }
    np.testing.assert_array_equal(read.numbers["g"], [1, np.nan, np.nan, 1])
    np.testing.assert_array_equal(read.numbers["d"], [9000, np.nan, np.nan, 9003])


def test_a_table_of_single_values_is_copied_as_a_loop_of_one_row(tmp_path: Path) -> None:
    block = parse(written(tmp_path, "data_x\n_a 'b c'  # why\n_d\n_e \"it's\"\n"))["x"]
    out = io.BytesIO()
    block.copy_head(out)
    block.copy_rows(np.array([0]), out, [b" 7"])
    assert out.getvalue() == b"data_x\n\nloop_\n_a #1\n_d #2\n_e #3\n'b c' '' it's 7\n"
    again = parse(written(tmp_path, out.getvalue()))["x"]
    assert again.fields(0) == ["b c", "", "it's", "7"]
    assert block.row_text(0) == "'b c' '' it's"


def test_two_values_of_one_name_are_a_malformed_row_and_neither_is_lost(tmp_path: Path) -> None:
    block = parse(written(tmp_path, "data_x\n_a My Grid/b.mrc\n_d 5\n"))["x"]
    read = block.read(["a"], ["d"])
    assert read.malformed == {0: "has 2 values for a: a name with blanks must stand in quotes"}
    assert np.isnan(read.numbers["d"]).all()
    assert block.row_text(0) == "My Grid/b.mrc 5"


def test_a_loop_after_single_values_is_not_lost_in_silence(tmp_path: Path) -> None:
    block = parse(written(tmp_path, "data_x\n_a 1\n\nloop_\n_b\n2\n3\n"))["x"]
    with pytest.raises(FormatError, match="has a loop after single values in its table data_x"):
        block.numbers("a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "#1",
        "_a",
        "'",
        '"',
        "it's",
        "it's here",
        '12" of',
        "a' \"b",
        "data_x",
        "loop_",
        "é ü",
    ],
)
def test_what_is_quoted_is_read_as_it_was(tmp_path: Path, text: str) -> None:
    block = parse(written(tmp_path, f"data_x\nloop_\n_a\n_b\n{quoted(text)} 1\n"))["x"]
    assert block.column("a").tolist() == [text]
    assert block.numbers("b").tolist() == [1]


def test_many_quotes_that_do_not_end_take_no_longer_than_others(tmp_path: Path) -> None:
    line = "'a " * 200_000
    block = parse(written(tmp_path, f"data_x\nloop_\n_a\n_b\n{line}\n'b 'c' 1\n"))["x"]
    read = block.read(["a"], ["b"])
    assert list(read.malformed) == [0]
    assert as_objects(read.strings["a"]).tolist() == ["'a", "b 'c"]
    assert read.numbers["b"][1] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a\nb", r"the character '\\n'"),
        ("a\rb", r"the character '\\r'"),
        ("a\0b", "the character"),
        ("a\u2028b", "the character"),
        ("a\udce9b", "bytes that are not UTF-8"),
        ("it's ' or \" b", "both kinds of quotes before blanks"),
    ],
)
def test_what_no_field_can_hold_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        quoted(text)


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
        (b"", "is not a STAR file: it has no line that begins with data_"),
        (b"just words\nfrom data_ to data_\n", "is not a STAR file: it has no line that begins"),
        (b"\x00\x01data_\n", "is not a STAR file: it is not text"),
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
    read = parse(path)["x"].read(["a"])
    assert (as_objects(read.strings["a"]).tolist(), read.undecoded) == (["\\xe5.mrc"], {"a": [0]})
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
