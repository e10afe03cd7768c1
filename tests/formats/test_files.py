"""Files that appear whole, and text that every sink takes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.errors import FormatError, printable
from cryoray.formats.files import without_apostrophe, write_csv, write_parquet

NAMES = {
    "plain/é.mrcs": "plain/é.mrcs",
    os.fsdecode(b"m\xe9.mrcs"): r"m\xe9.mrcs",
    "a\nb\r\t\0.mrcs": r"a\nb\r\t\x00.mrcs",
    "\u2028": r"\u2028",
    "\ud800": r"\ud800",
    'it\'s "x".mrcs': 'it\'s "x".mrcs',
}


@pytest.mark.parametrize(("name", "text"), NAMES.items())
def test_any_name_is_printable(name: str, text: str) -> None:
    assert printable(name) == text
    assert text.encode().decode() == text
    assert "\n" not in str(FormatError("is bad", file=name, row=3))


FORMULAS = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "'=x", "-"]
NO_FORMULAS = ["-1.5", "+3e-4", "a=b", "'x", "", "000001@a.mrcs", "-inf"]


def test_a_spreadsheet_takes_no_text_of_a_csv_for_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, ("stack", "index"), [(text, -1.5) for text in [*FORMULAS, *NO_FORMULAS]])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert all(text.startswith("'") for text, _ in rows[: len(FORMULAS)])
    assert [text for text, _ in rows[len(FORMULAS) :]] == NO_FORMULAS
    assert [without_apostrophe(text) for text, _ in rows] == [*FORMULAS, *NO_FORMULAS]
    assert {number for _, number in rows} == {"-1.5"}


def test_a_csv_takes_any_name_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, ("stack", "index"), [(name, 1) for name in NAMES])
    with path.open(newline="", encoding="utf-8") as file:
        assert [text for text, _ in list(csv.reader(file))[1:]] == list(NAMES.values())
    assert path.read_bytes().count(b"\n") == 1 + len(NAMES)


def test_a_table_is_written_into_a_folder_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xe9") / "t.parquet"
    write_parquet(path, pa.table({"a": [1]}))
    with path.open("rb") as file:
        assert pq.read_table(file)["a"].to_pylist() == [1]
