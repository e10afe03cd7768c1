"""How a page shows an image: for the eye, as the networks had it, or as it is in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cryoray.errors import InputError
from cryoray.imaging import pictures

#: For the eye (protein bright, low-passed), as the networks had it, and as it is in the file.
View = Literal["clear", "network", "file"]
VIEWS: tuple[View, ...] = ("clear", "network", "file")
#: Colours, sliders and the larger view, for every page that has them.
SHARED_STYLE = Path(__file__).with_name("shared.css")
#: Sides that pictures have, px.
SIDES = (64, 96, 128, 192, 320)


def check_sliders(low: float, cut: float) -> None:
    """Refuse what the sliders of low-pass (Å) and contrast (%) cannot ask for.

    Raises:
        InputError: a number is out of its range.
    """
    if not 0 <= low <= 1000 or not 0 <= cut <= 40:
        raise InputError("low runs from 0 to 1000 Å, cut from 0 to 40%")


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture is drawn.

    Attributes:
        view: see `VIEWS`.
        side: px.
        low_pass: Å; 0 for none. The file's own view has none.
        cut: percent of the pixels that are black, and as many white.
    """

    view: View = "clear"
    side: int = 96
    low_pass: float = pictures.LOW_PASS
    cut: float = pictures.CUT

    @classmethod
    def asked(
        cls, view: str, side: int, low: float, cut: float, sides: Sequence[int] = SIDES
    ) -> Look:
        """What a page asked for.

        Raises:
            InputError: there is no such view or side, or a number is out of its range.
        """
        if view not in VIEWS or side not in sides:
            raise InputError(f"views are {', '.join(VIEWS)}, sides {', '.join(map(str, sides))}")
        check_sliders(low, cut)
        return cls(view, side, low, cut)

    def draw(
        self,
        images: Sequence[np.ndarray],
        pixel_size: Sequence[float],
        *,
        dark: bool,
        noisy: bool = False,
    ) -> np.ndarray:
        """Images as this look has them, uint8 [n, side, side].

        Args:
            images: float [H, W] each, of any sizes; prepared ones for the network's view, else raw.
            pixel_size: Å/px of each, NaN where unknown.
            dark: whether protein is dark in raw images.
            noisy: whether they are raw particles (`pictures.greys`).
        """
        drawn = np.empty((len(images), self.side, self.side), np.uint8)
        for shape in {image.shape for image in images}:
            alike = [k for k, image in enumerate(images) if image.shape == shape]
            together = np.stack([images[k] for k in alike])
            if dark and self.view == "clear":
                together = -together
            if self.view != "file":
                sizes = np.array([pixel_size[k] for k in alike])
                together = pictures.low_passed(together, sizes, self.low_pass)
            drawn[alike] = pictures.greys(together, self.side, cut=self.cut, noisy=noisy)
        return drawn
