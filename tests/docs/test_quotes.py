"""What pages quote from messages and name in the code is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.pages import DOCS

ROOT = DOCS.parent
PAGES = sorted(page for page in DOCS.rglob("*.md"))
#: A path of the package, the tests or another folder, as pages name files between backquotes.
_PATH = re.compile(r"`((?:\w[\w.-]*/)+(?:[\w.-]+)?)`")
_TOPS = ("cryoray", "flows", "tests", "benchmarks", "cluster", "docs")


def source() -> str:
    """The text of the package and of the flows, with strings that go on in the next line joined."""
    texts = [
        path.read_text("utf-8")
        for top in ("cryoray", "flows")
        for path in sorted((ROOT / top).rglob("*.py"))
    ]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def quoted(page: Path) -> list[str]:
    """The sentences of block quotes."""
    return re.findall(r"^> (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)


def test_quoted_messages_are_the_code_s() -> None:
    code = source()
    sentences = [sentence for page in PAGES for sentence in quoted(page)]
    assert len(sentences) >= 5
    assert [sentence for sentence in sentences if sentence not in code] == []


def missing(page: Path) -> list[str]:
    """Paths that a page names and that are not there; those in the package may leave out its name."""
    named = _PATH.findall(page.read_text("utf-8"))
    inside = {path.name for path in (ROOT / "cryoray").iterdir()}
    return [
        path
        for path in named
        if path.partition("/")[0] in (*_TOPS, *inside)
        and not ((ROOT / path).exists() or (ROOT / "cryoray" / path).exists())
    ]


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "CONTRIBUTING.md",
        *sorted((DOCS / "development").glob("*.md")),
        *sorted((DOCS / "decisions").glob("*.md")),
    ],
    ids=lambda page: page.stem,
)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    assert missing(page) == []


def test_a_file_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Change `formats/nowhere.py` and `formats/star.py`.")
    assert missing(tmp_path / "page.md") == ["formats/nowhere.py"]


#: A file of the package and what follows it in brackets.
_WITH_NAMES = re.compile(r"`([\w/]+\.(?:py|js))` \(([^)]+)\)")


def misnamed(text: str) -> list[str]:
    """Names that a text gives in brackets after a file of the package, and that the file has not."""
    return [
        f"{path}: {name}"
        for path, brackets in _WITH_NAMES.findall(text)
        for name in re.findall(r"`(\w+)`", brackets)
        if not re.search(rf"\b{name}\b", (ROOT / "cryoray" / path).read_text("utf-8"))
    ]


def test_the_table_of_what_to_change_where_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) > 8
    assert sum(bool(_PATH.search(row)) for row in table) >= len(table) - 1, "each row names a file"
    assert misnamed(text) == []
    assert misnamed("`formats/star.py` (`parse`, `nothing_like_it`)") == [
        "formats/star.py: nothing_like_it"
    ]


def test_each_word_stands_once_in_the_glossary() -> None:
    words = re.findall(r"^### (.+)$", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert len(words) == len(set(words)) > 25
    assert words == sorted(words, key=str.lower)


def test_nothing_of_a_page_is_loaded_from_elsewhere() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        assert re.findall(r"!\[[^\]]*\]\(https?://|<(?:script|img|link|iframe)\b", text) == [], page
