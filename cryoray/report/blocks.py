"""What a page is made of: sections of numbers, tables, figures and pictures, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryoray.imaging import pictures

#: Side to which larger pictures are resampled, px.
_LARGEST = 80

if TYPE_CHECKING:
    from markupsafe import Markup

    from cryoray.metrics.accuracy import Confusion


@dataclass(frozen=True, slots=True)
class Headline:
    """The few numbers a reader came for: (value, what it is), large."""

    numbers: tuple[tuple[str, str], ...]
    block: ClassVar[str] = "headline"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one pair a line; those with a title stand side by side."""

    pairs: tuple[tuple[str, str], ...]
    title: str = ""
    code: bool = False
    block: ClassVar[str] = "facts"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column heads; the first column is text, the others are numbers unless ``text``.

    A ``narrow`` one may stand beside a figure.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    text: tuple[int, ...] = ()
    narrow: bool = False
    block: ClassVar[str] = "table"


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot; ``alt`` says in words what it shows to those who cannot see it."""

    svg: Markup
    alt: str
    caption: str
    wide: bool = False
    block: ClassVar[str] = "figure"


@dataclass(frozen=True, slots=True)
class Cells:
    """The confusion of labels and forced decisions."""

    confusion: Confusion
    block: ClassVar[str] = "cells"


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Images in one row of a gallery.

    Attributes:
        title: what they have in common.
        tone: ``keep``, ``discard`` or ``review``: the colour of their frames.
        images: float [n, H, W].
        scores: float [n].
        names: what each is called in its source.
        note: a sentence under the title.
        captions: the lines under each image, where they are more than its score.
    """

    title: str
    tone: str
    images: np.ndarray
    scores: np.ndarray
    names: Sequence[str]
    note: str = ""
    captions: Sequence[Sequence[str]] = ()
    block: ClassVar[str] = "strip"

    @property
    def tiles(self) -> list[tuple[str, str, Sequence[str], str]]:
        """(address, name, lines under it, the same in words) of each image."""
        addresses = pictures.data_uris(self.images, _LARGEST)
        scores = [f"{score:.2f}" for score in self.scores]
        lines = self.captions or [(score,) for score in scores]
        words = map(", ".join, self.captions) if self.captions else [f"score {s}" for s in scores]
        return list(zip(addresses, map(str, self.names), lines, words, strict=True))


Block = Headline | Facts | Table | Figure | Cells | Strip


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A heading, a paragraph, and what is under it."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """Where a link finds it."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def percent(value: object, digits: int = 2) -> str:
    """``0.0312`` as ``3.12%``; a dash where there is no number."""
    return f"{100 * value:.{digits}f}%" if isinstance(value, int | float) else "–"


def decimal(value: object) -> str:
    """Four decimals; a dash where there is no number."""
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def angstrom(value: float | None) -> str:
    """``3.456`` as ``3.46 Å``; a dash where there is no number."""
    return "–" if value is None else f"{value:.2f}\N{NO-BREAK SPACE}Å"


def gallery_section(strips: Sequence[Strip], title: str = "Gallery", lead: str = "") -> Section:
    """Images with their scores, a strip for each verdict or kind of error."""
    return Section(title, list(strips), lead)


def table_section(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    lead: str = "",
) -> Section:
    """Any table: the first column is text, the others are numbers."""
    return Section(title, [Table(tuple(columns), tuple(map(tuple, rows)), caption)], lead)
