"""The pictures on the page: drawn when somebody looks, several side by side in one file."""

from __future__ import annotations

import threading

import numpy as np

from cryoray.errors import FormatError, InputError
from cryoray.formats import mrc
from cryoray.formats.source import Source
from cryoray.imaging import pictures
from cryoray.preparation.look import look_at
from cryoray.preparation.plan import protein_is_dark
from cryoray.preparation.reader import Headers
from cryoray.records import Stack
from cryoray.select.table import Table
from cryoray.settings import PreparationSettings
from cryoray.web.looks import Look

#: Pictures in one file.
MOST = 64
#: Images among which similar ones are looked for, those nearest in score; directions of their descriptors.
CANDIDATES, _DIRECTIONS = 2000, 24
#: px of what descriptors are made of.
_SMALL = 32


class Gallery:
    """Reads and draws the images of a table.

    Args:
        table: whose images are shown.
        preparation: how the networks had them prepared.
    """

    def __init__(self, table: Table, preparation: PreparationSettings) -> None:
        self._table, self._preparation = table, preparation
        self._headers = Headers(table.source.stacks)
        self._lock = threading.Lock()
        self._dark: bool | None = None
        self._described: dict[int, np.ndarray] = {}

    @property
    def dark(self) -> bool:
        """Whether protein is dark in the source; found out once, from up to 200 images."""
        with self._lock:
            if self._dark is None:
                self._dark = protein_is_dark(self._table.source, self._preparation)
            return self._dark

    def strip(self, places: np.ndarray, look: Look) -> bytes:
        """The pictures of some images side by side, as a PNG; grey where one cannot be read.

        Args:
            places: int64 [k], of the table, in any order.
            look: how they are drawn.
        """
        drawn = np.full((len(places), look.side, look.side), 128, np.uint8)
        network = look.view == "network"
        here, images, sizes = self._prepared(places) if network else self._raw(places)
        dark, noisy = look.view == "clear" and self.dark, self._table.kind == "particle"
        drawn[here] = look.draw(images, sizes, dark=dark, noisy=noisy)
        return pictures.png(pictures.strip(drawn), small=False)

    def similar(self, place: int, order: np.ndarray) -> np.ndarray:
        """Images in the order of how much they look like one, itself first.

        They look alike if the low-passed images do, however they are turned: the amplitudes of each
        ring's angular frequencies, in their principal directions.

        Args:
            place: of the table.
            order: int64 [k], places among which they are looked for; the first `CANDIDATES` are.

        Returns:
            int64 [<= k].
        """
        among = np.unique(np.append(order[:CANDIDATES], place))
        new = np.array([one for one in among.tolist() if one not in self._described], np.int64)
        for some in np.array_split(new, max(1, len(new) // 256)):
            here, images, sizes = self._raw(some)
            for at, image, size in zip(here, images, sizes, strict=True):
                self._described[int(some[at])] = _descriptor(image, size)
        known = np.array([one for one in among.tolist() if one in self._described], np.int64)
        if place not in self._described:
            raise InputError("this image cannot be read, so none can be compared with it")
        seen = np.stack([self._described[one] for one in known.tolist()])
        seen = seen - seen.mean(0)
        _, _, directions = np.linalg.svd(seen, full_matrices=False)
        seen = seen @ directions[:_DIRECTIONS].T
        far = np.linalg.norm(seen - seen[np.searchsorted(known, place)], axis=1)
        return known[np.argsort(far, kind="stable")]

    def _raw(self, places: np.ndarray) -> tuple[list[int], list[np.ndarray], list[float]]:
        """Which of some images could be read, they [H, W], and their Å/px, NaN where unknown."""
        source = self._table.source
        rows = self._table.verdicts.rows[places]
        stack = source.stack[rows]
        here: list[int] = []
        images: list[np.ndarray] = []
        sizes: list[float] = []
        with self._lock:
            self._headers.read(np.unique(stack[stack >= 0]).tolist())
        for number in np.unique(stack[stack >= 0]).tolist():
            header = self._headers[number]
            those = np.flatnonzero(stack == number)
            if isinstance(header, Stack):
                self._read(source, header, rows, those, here, images, sizes)
        return here, images, sizes

    def _read(
        self,
        source: Source,
        header: Stack,
        rows: np.ndarray,
        those: np.ndarray,
        here: list[int],
        images: list[np.ndarray],
        sizes: list[float],
    ) -> None:
        frames = source.frame[rows[those]]
        inside = (frames >= 0) & (frames < header.count)
        those, frames = those[inside], frames[inside]
        order = np.argsort(frames, kind="stable")
        try:
            read = mrc.read_frames(header, frames[order])
        except FormatError:
            return
        for at, image in zip(those[order].tolist(), read, strict=True):
            size = float(source.pixel_size[rows[at]])
            here.append(at)
            images.append(np.asarray(image, np.float32))
            sizes.append(size if np.isfinite(size) else header.pixel_size or np.nan)

    def _prepared(self, places: np.ndarray) -> tuple[list[int], list[np.ndarray], list[float]]:
        """The same as the networks had them."""
        rows = self._table.verdicts.rows[places]
        seen = look_at(self._table.source, rows, self._preparation, self.dark, low_pass=False)
        at = {row: number for number, row in enumerate(seen.rows.tolist())}
        here = [number for number, row in enumerate(rows.tolist()) if row in at]
        found = [at[int(rows[number])] for number in here]
        return here, [seen.images[one] for one in found], [seen.pixel_size[one] for one in found]


def _descriptor(image: np.ndarray, pixel_size: float) -> np.ndarray:
    """What an image looks like however it is turned, float32: ring by ring, how it varies around."""
    small = pictures.low_passed(image[None], pixel_size)
    (small,) = pictures.resized(small, _SMALL)
    small = (small - small.mean()) / max(float(small.std()), 1e-6)
    radius = np.arange(1, _SMALL // 2)[:, None]
    angle = np.arange(32)[None] * (2 * np.pi / 32)
    y = np.round(_SMALL // 2 + radius * np.sin(angle)).astype(int)
    x = np.round(_SMALL // 2 + radius * np.cos(angle)).astype(int)
    around = np.abs(np.fft.rfft(small[y, x], axis=1))[:, :9] / 32
    # A ring weighs by its length, as its pixels do.
    return np.asarray((around * np.sqrt(radius)).ravel(), np.float32)
