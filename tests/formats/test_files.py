"""Files that appear whole, and text that every sink takes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.errors import FormatError, InputError, printable
from cryoray.formats.files import replacing_folder, without_apostrophe, write_csv, write_parquet

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


def test_a_folder_of_ones_own_with_such_a_name_is_not_removed(tmp_path: Path) -> None:
    def is_one(folder: Path) -> bool:
        return (folder / "verdicts").is_file()

    def write(out: Path) -> None:
        with replacing_folder(out, "folder of verdicts", is_one) as folder:
            (folder / "verdicts").touch()

    out = tmp_path / "v"
    write(out)
    for end in ("old", "partial"):
        own = tmp_path / f"v.{end}/thesis.txt"
        own.parent.mkdir()
        own.write_text("years")
        with pytest.raises(InputError, match=rf"v\.{end}: is in the way of a folder of verdicts"):
            write(out)
        assert own.read_text() == "years"
        own.unlink()
    write(out)  # what is empty goes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]
    assert [path.name for path in out.iterdir()] == ["verdicts"]


def test_what_a_killed_run_left_behind_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "v"
    code = f"""
import os
from pathlib import Path
from cryoray.formats.files import replacing_folder
with replacing_folder(Path({str(out)!r}), "folder of verdicts", lambda folder: False) as folder:
    (folder / "half").touch()
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (tmp_path / "v.partial/half").is_file()
    with replacing_folder(out, "folder of verdicts", lambda folder: False) as folder:
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["v", "whole"]
