"""Names that others chose are shown without harm, and refused where no file can hold them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoray.errors import printable
from cryoray.session.names import unwritable


@given(st.binary())
def test_whatever_a_name_is_it_becomes_one_harmless_line(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode()


@given(st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs"))))
def test_an_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\nb", "a\\nb"),
        (b"a\x1b[2J", "a\\x1b[2J"),
        (b"caf\xe9", "caf\\xe9"),
        ("a\u202eb".encode(), "a\\u202eb"),
    ],
)
def test_what_is_not_printable_is_escaped(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


@pytest.mark.parametrize("name", [b"a\nb.mrcs", b"caf\xe9.mrcs", b"a'\".mrcs", b"a\x1b.mrcs"])
def test_a_name_that_no_star_file_can_hold_is_refused(name: bytes) -> None:
    assert unwritable(os.fsdecode(name))


@pytest.mark.parametrize("name", ["a b.mrcs", "it's.mrcs", 'say "hi".mrcs', "Zürich µ.mrcs"])
def test_any_other_name_is_fine(name: str) -> None:
    assert unwritable(name) is None
