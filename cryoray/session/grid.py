"""Where on the grid a micrograph was taken, as far as its name says: grid square and foil hole.

Acquisition programs put it there in their own ways, and processing programs keep the stem of the name:

* EPU: ``…/GridSquare_30458884/Data/FoilHole_30593197_Data_30537205_30537207_20230430_084907…``; the
  folder of the square stays where the folder tree was imported with the movies, and is lost otherwise.
* SerialEM: ``NAME_ITEM_…_X+1Y-1-2…`` for the second shot in the hole one to the right and one below of
  navigator item ITEM; points that were added to a square's map are labelled ``SQUARE-ITEM``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cryoray.errors import SettingsError

#: Named patterns; ``auto`` tries them in this order.
PATTERNS: Mapping[str, str] = {
    "epu": r"(?:.*?GridSquare_(?P<square>\d+)/)?(?:.*/)?[^/]*FoilHole_(?P<hole>\d+)_Data_",
    "serialem": (
        r".*?_(?:(?P<square>\d{1,6})-)?(?P<hole_item>\d{1,5})(?:_\d{1,5})?"
        r"(?:_[A-Z][a-z]{2}\d{2}_[\d.]+)?_(?P<hole_shift>X[+-]\d+Y[+-]\d+)-\d+"
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a micrograph was taken; None where its name does not say."""

    square: str | None = None
    hole: str | None = None


class Grid:
    """Reads places from names.

    Args:
        pattern: ``auto``, ``none``, a name in ``PATTERNS``, or a regular expression with groups named
            ``square`` and ``hole`` (or several, ``hole_…``, which are joined) that is matched from the
            beginning of a micrograph's name, folders included.

    Raises:
        SettingsError: it is no regular expression, or has no such group.
    """

    def __init__(self, pattern: str = "auto") -> None:
        chosen = {"auto": list(PATTERNS.values()), "none": []}.get(
            pattern, [PATTERNS.get(pattern, pattern)]
        )
        try:
            self._patterns = [re.compile(one) for one in chosen]
        except re.error as error:
            raise SettingsError(f"the pattern of grid positions {pattern!r}: {error}") from error
        for one in self._patterns:
            if not any(name == "square" or name.startswith("hole") for name in one.groupindex):
                raise SettingsError(
                    f"the pattern of grid positions {pattern!r} names neither a square nor a hole",
                    remedy=f"give {', '.join(PATTERNS)}, auto, none, or one with (?P<square>…)",
                )

    def place(self, micrograph: str) -> Place:
        """The place that a micrograph's name tells."""
        for pattern in self._patterns:
            found = pattern.match(micrograph)
            if found:
                parts = found.groupdict()
                holes = [
                    value for name, value in parts.items() if name.startswith("hole") and value
                ]
                return Place(parts.get("square"), ":".join(holes) or None)
        return Place()
