"""Images of judged rows as PNG, made when somebody looks, and kept for a while."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.errors import FormatError, InputError
from cryoray.formats import mrc
from cryoray.formats.names import VERDICTS_TABLE
from cryoray.formats.opening import OutsideError, Scope
from cryoray.formats.rows import resolve
from cryoray.formats.stacks import open_stacks
from cryoray.imaging.pictures import greys, low_passed, png
from cryoray.preparation.plan import protein_is_dark
from cryoray.preparation.prepare import prepare_images
from cryoray.preparation.reader import image_header
from cryoray.session.cache import Cache
from cryoray.session.judging import place
from cryoray.session.labels import image_place
from cryoray.settings import PreparationSettings

#: Sides that are made, px: a tile's, and a large one's.
SIZES = (96, 240)
_PICTURES, _TABLES, _AT_ONCE = 1000, 64, 2


class Pictures:
    """Reads verdicts and images of stacks that the ledger knows.

    Args:
        scope: what the service may read; of a session, what of it lies in the session's folders.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._pictures: Cache[bytes] = Cache(_PICTURES)
        self._tables: Cache[pa.Table] = Cache(_TABLES)
        self._dark: Cache[bool] = Cache(_PICTURES)
        self._at_once = threading.Semaphore(_AT_ONCE)

    def table(self, session: Any, stack: Any) -> pa.Table:
        """`verdicts.parquet` of a stack.

        Raises:
            InputError: it is not there now.
        """

        def read() -> pa.Table:
            folder = place(Path(session.root), Path(session.folder), Path(stack.path))
            try:
                return pq.read_table(folder / VERDICTS_TABLE)
            except (OSError, pa.ArrowException) as error:
                raise InputError("has no verdicts now", file=stack.path) from error

        return self._tables.get((stack.id, stack.digest, stack.judged), read)

    def png(self, session: Any, stack: Any, row: int, size: int) -> bytes:
        """The image of a row, as `imaging.pictures` draws it: protein bright, particles low-passed.

        Raises:
            InputError: there is no such row, or its image cannot be read now, or not by this service.
        """
        table = self.table(session, stack)
        if not 0 <= row < len(table):
            raise InputError(f"has no row {row + 1:,}", file=stack.path)
        name = table["image"][row].as_py()
        return self._pictures.get(
            (stack.id, stack.digest, row, size),
            lambda: self._draw(session, stack, name, size),
        )

    def _draw(self, session: Any, unit: Any, name: str, size: int) -> bytes:
        path = Path(unit.path)
        named, number = image_place(name, str(path))
        file = path if path.suffix == ".mrcs" else resolve([named], path.parent)[0]
        with self._at_once, self._scope_of(session, file).reading():
            stack = image_header(file)
            raw = mrc.read_frames(stack, np.array([number - 1]))
            pixel = np.array([stack.pixel_size or np.nan], np.float32)
            dark = self._dark.get((unit.id, unit.digest, file), lambda: _is_dark(file))
            settings = PreparationSettings(box=size)
            prepared, reasons = prepare_images(raw, pixel, dark, settings)
            if reasons:
                raise FormatError(reasons[0], file=file, row=number)
        if unit.kind == "particle":
            prepared = low_passed(prepared, pixel * max(raw.shape[1:]) / size)
        return png(greys(prepared)[0])

    def _scope_of(self, session: Any, file: Path) -> Scope:
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
