"""Images of judged rows as PNG, made when somebody looks, and kept for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.errors import FormatError, InputError
from cryoray.formats import mrc
from cryoray.formats.names import QUARANTINE_TABLE, VERDICTS_TABLE
from cryoray.formats.opening import OutsideError, Scope
from cryoray.formats.rows import resolve
from cryoray.formats.stacks import open_stacks
from cryoray.imaging import pictures
from cryoray.preparation.plan import protein_is_dark
from cryoray.preparation.prepare import prepare_images, window_sides
from cryoray.preparation.reader import image_header
from cryoray.records import quarantine_words
from cryoray.session.cache import Cache
from cryoray.session.judging import place
from cryoray.session.labels import image_place
from cryoray.settings import PreparationSettings
from cryoray.web.looks import Look

PreparationOf = Callable[[str], PreparationSettings | None]

_PICTURES, _TABLES, _AT_ONCE = 1000, 64, 2


class Pictures:
    """Reads verdicts and images of stacks that the ledger knows.

    Args:
        scope: what the service may read; of a session, what of it lies in the session's folders.
        preparation_of: how an ensemble has its images prepared, by its digest; None where that is not
            known here.
    """

    def __init__(self, scope: Scope, preparation_of: PreparationOf = lambda _: None) -> None:
        self._scope, self._preparation_of = scope, preparation_of
        self._pictures: Cache[bytes] = Cache(_PICTURES)
        self._tables: Cache[pa.Table] = Cache(_TABLES)
        self._dark: Cache[bool] = Cache(_PICTURES)
        self._at_once = threading.Semaphore(_AT_ONCE)

    def table(self, session: Any, stack: Any) -> pa.Table:
        """`verdicts.parquet` of a stack.

        Raises:
            InputError: it is not there now.
        """
        key = stack.id, stack.digest, stack.judged, stack.profile
        return self._tables.get(key, lambda: _read(session, stack, VERDICTS_TABLE))

    def quarantined(self, session: Any, stack: Any) -> list[tuple[str, str]]:
        """Image and reason of the rows of a stack that have no verdict.

        Raises:
            InputError: what became of the stack is not there now.
        """
        if not stack.quarantined:
            return []
        lost = _read(session, stack, QUARANTINE_TABLE)
        return [
            (image, quarantine_words(why, stack.kind))
            for image, why in zip(
                lost["image"].to_pylist(), lost["reason"].to_pylist(), strict=True
            )
        ]

    def png(self, session: Any, stack: Any, row: int, look: Look) -> bytes:
        """The image of a row.

        Raises:
            InputError: there is no such row, or its image cannot be read now, or not by this service; or
                it is to be shown as the networks saw it, and their ensemble is not served now.
        """
        table = self.table(session, stack)
        if not 0 <= row < len(table):
            raise InputError(f"has no row {row + 1:,}", file=stack.path)
        name = table["image"][row].as_py()
        return self._pictures.get(
            (stack.id, stack.digest, row, look),
            lambda: self._draw(session, stack, name, look),
        )

    def _draw(self, session: Any, unit: Any, name: str, look: Look) -> bytes:
        path = Path(unit.path)
        named, number = image_place(name, str(path))
        file = path if path.suffix == ".mrcs" else resolve([named], path.parent)[0]
        if unit.kind != "particle":  # class averages are clear as they are
            look = replace(look, low_pass=0.0)
        with self._at_once, self.scope_of(session, file).reading():
            stack = image_header(file)
            images = mrc.read_frames(stack, np.array([number - 1]))
            pixel = np.array([stack.pixel_size or np.nan], np.float32)
            dark = look.view != "file" and self._dark.get(
                (unit.id, unit.digest, file), lambda: _is_dark(file)
            )
            if look.view == "network":
                settings = self._prepared_as(unit)
                images, reasons = prepare_images(images, pixel, dark, settings)
                if reasons:
                    raise FormatError(reasons[0], file=file, row=number)
                width = window_sides(images.shape[1:], pixel, settings)
                pixel = pixel * width / settings.box
        (drawn,) = look.draw(
            [images[0]], [float(pixel[0])], dark=dark, noisy=unit.kind == "particle"
        )
        return pictures.png(drawn)

    def box(self, session: Any, stack: Any) -> float | None:
        """Å, the side of a stack's images; None where their pixel size is not known."""
        path = Path(stack.path)
        try:
            with self.scope_of(session, path).reading():
                header = image_header(path)
        except InputError:
            return None
        return header.pixel_size * header.width if header.pixel_size else None

    def _prepared_as(self, unit: Any) -> PreparationSettings:
        """How the networks had the images of a stack prepared.

        Raises:
            InputError: nobody here knows.
        """
        if unit.kind != "particle":
            raise InputError("how the networks saw a class depends on all of its job")
        found = self._preparation_of(unit.ensemble) if unit.ensemble else None
        if found is None:
            raise InputError("the ensemble that judged this is not served now", file=unit.path)
        return found

    def scope_of(self, session: Any, file: Path) -> Scope:
        """What may be read for a session: of all the service's, the session's folder with the file.

        Raises:
            OutsideError: the file lies in none of them.
        """
        folders = [Path(one) for one in (session.root, *(session.roots or ()))]
        for folder in folders[1:]:
            with suppress(OutsideError):
                scope = self._scope.inside(folder)
                scope.confine(file)
                return scope
        scope = self._scope.inside(folders[0])
        scope.confine(file)
        return scope


def _is_dark(file: Path) -> bool:
    """Whether protein is dark in a stack, as far as its own images tell."""
    return protein_is_dark(open_stacks(file, [file], "particle"), PreparationSettings())


def _read(session: Any, stack: Any, name: str) -> pa.Table:
    """A table of the verdicts of a stack."""
    folder = place(Path(session.root), Path(session.folder), Path(stack.path))
    try:
        return pq.read_table(folder / name)
    except (OSError, pa.ArrowException) as error:
        raise InputError("has no verdicts now", file=stack.path) from error
