"""The fenced blocks of the site's pages, and the scripts that tutorials are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).parent
TUTORIALS = DOCS / "tutorials"

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences; ``language`` is the word behind the first."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Tutorial:
    """A tutorial as a program.

    Attributes:
        script: its blocks of code, one after the other.
        shown: the blocks that follow one and show what it prints.
        shell: whether the code is for a shell; else it is Python.
    """

    script: str
    shown: tuple[str, ...]
    shell: bool

    def command(self, python: Path) -> list[str]:
        """How to run it: in bash, which stops at the first fault, or in this Python."""
        if self.shell:
            return ["bash", "-euo", "pipefail", "-c", self.script]
        return [str(python), "-c", self.script]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(*found) for found in _FENCED.findall(page.read_text("utf-8"))]


def tutorial(name: str) -> Tutorial:
    """A tutorial of the site.

    Raises:
        ValueError: it has code for a shell and for Python, which cannot be one program.
    """
    found = blocks(TUTORIALS / f"{name}.md")
    languages = {block.language for block in found} - {"text"}
    if languages not in ({"sh"}, {"python"}):
        raise ValueError(f"{name} mixes {', '.join(sorted(languages))}")
    code = (block.text for block in found if block.language != "text")
    shown = (
        after.text
        for before, after in pairwise(found)
        if after.language == "text" and before.language != "text"
    )
    return Tutorial("\n".join(code), tuple(shown), languages == {"sh"})
