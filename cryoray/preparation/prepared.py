"""The prepared set, read on demand: ordinary stacks and a table whose rows line up with them.

    images-00000.mrcs …   a part's images in its source's order; every part begins a new stack
    particles.parquet     one row per image, all parts one after the other
    quarantine.parquet    what could not be prepared, and why
    set.json              parts, settings, digests, counts

`cryoray.preparation.writing` writes one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from cryoray.errors import FormatError, InputError, InternalError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.names import PARTICLES_TABLE, QUARANTINE_TABLE, SET
from cryoray.formats.opening import way_out
from cryoray.imaging.pictures import low_passed
from cryoray.preparation.features import chosen_features
from cryoray.records import REASONS, Kind
from cryoray.settings import PreparationSettings

FORMAT = 1
#: Files of a set beside its stacks.
_REMEDY = "make one with `cryoray ingest`"


class PreparedSet:
    """A prepared set on disk, read on demand.

    Attributes:
        path: its folder.
        kind: what its images are.
        settings: how they were prepared.
        features: names of the feature columns.
        digest: over settings and parts; equal digests mean equal images, labels and features.
        n: number of images.
        parts: of `set.json`, as they stand there.
        used: the settings of `set.json`: the preparation's, and dtype.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.kind: Kind = description["kind"]
        self.used: dict[str, Any] = description["settings"]
        self.settings = PreparationSettings(**self.used["preparation"])
        self.features = tuple(feature["name"] for feature in description["features"])
        self.digest = str(description["digest"])
        self.parts: list[dict[str, Any]] = description["parts"]
        self.counts: dict[str, int] = description["counts"]
        self.n = self.counts["images"]

    @classmethod
    def open(cls, path: Path) -> PreparedSet:
        """The set in a folder.

        Raises:
            InputError: there is none.
            FormatError: it is damaged, or of a later format.
        """
        path = Path(path).absolute()
        file = path / SET
        if not path.exists():
            raise InputError(
                "is not a prepared set: there is no such folder", file=path, remedy=way_out(path)
            )
        if not file.is_file():
            raise InputError(
                "is not a prepared set: it holds no set.json", file=path, remedy=_REMEDY
            )
        try:
            description = json.loads(file.read_text())
            if description["format"] != FORMAT:
                raise FormatError(
                    f"is of format {description['format']}, which this cryoray does not know",
                    file=file,
                    remedy="use the cryoray that made it, or ingest again",
                )
            return cls(path, description)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise FormatError(
                f"is damaged ({type(error).__name__}: {str(error).splitlines()[0]})",
                file=file,
                remedy="ingest again",
            ) from error

    def __len__(self) -> int:
        return self.n

    @cached_property
    def table(self) -> pa.Table:
        """`particles.parquet`, one row per image (`records.particles_schema`).

        Raises:
            FormatError: it is missing, damaged or of another length than the images.
        """
        file = self.path / PARTICLES_TABLE
        table = _read_table(file)
        if len(table) != self.n:
            raise FormatError(
                f"has {len(table):,} rows for {self.n:,} images", file=file, remedy="ingest again"
            )
        return table

    @cached_property
    def quarantine(self) -> pa.Table:
        """`quarantine.parquet`, one row for each that was not prepared (`records.QUARANTINE_SCHEMA`).

        Raises:
            FormatError: it is missing or damaged.
        """
        return _read_table(self.path / QUARANTINE_TABLE)

    def check(self) -> None:
        """See whether all of the set is there, by its table and the headers of its stacks.

        Raises:
            FormatError: some of it is missing, damaged, of another length, or no file.
        """
        rows, images = len(self.table), int(self._stacks[0][-1])
        if rows != images:
            raise FormatError(
                f"has {rows:,} rows, and its stacks {images:,} images",
                file=self.path / PARTICLES_TABLE,
                remedy="ingest again",
            )

    @cached_property
    def _stacks(self) -> tuple[np.ndarray, list[Any]]:
        files = [file for part in self.parts for file in part["files"]]
        stacks = [read_header(self.path / file["name"]) for file in files]
        for stack, file in zip(stacks, files, strict=True):
            if stack.count != file["images"]:
                raise FormatError(
                    f"holds {stack.count:,} images, not {file['images']:,}",
                    file=stack.path,
                    remedy="copy the set again, or ingest again",
                )
        return np.cumsum([0, *(stack.count for stack in stacks)]), stacks

    def images(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, box, box] of rows (int64 [n], 0-based, in any order).

        Raises:
            FormatError: a stack is missing, damaged, or changed.
        """
        rows = np.asarray(rows, np.int64)
        order = np.argsort(rows, kind="stable")
        images = np.empty((len(rows), self.settings.box, self.settings.box), np.float32)
        starts, stacks = self._stacks
        if len(rows) and not 0 <= rows[order[0]] <= rows[order[-1]] < self.n:
            raise InternalError(f"rows asked for that {self.path} does not have")
        which = np.searchsorted(starts, rows[order], side="right") - 1
        for index in np.unique(which).tolist():
            here = order[which == index]
            images[here] = read_frames(stacks[index], rows[here] - starts[index])
        return images

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """The same for people to look at: particles are low-passed.

        Raises:
            FormatError: a stack is missing, damaged, or changed.
        """
        images = self.images(rows)
        if self.kind != "particle" or not len(images):
            return images
        starts, stacks = self._stacks
        which = np.searchsorted(starts, np.asarray(rows, np.int64), side="right") - 1
        size = np.array([np.nan if (s := stack.pixel_size) is None else s for stack in stacks])
        return low_passed(images, size[which])

    @property
    def labels(self) -> np.ndarray:
        """int8 [n]: 1 keep, 0 discard, -1 no label."""
        column = self.table["label"].cast(pa.int8()).fill_null(-1)
        return column.to_numpy().astype(np.int8)

    @property
    def reasons(self) -> np.ndarray:
        """int8 [n]: a place in `records.REASONS`, why an image was discarded; -1 where nobody gave one."""
        if "reason" not in self.table.column_names:
            return np.full(self.n, -1, np.int8)
        at = pc.index_in(self.table["reason"], pa.array(REASONS)).fill_null(-1)
        return at.to_numpy().astype(np.int8)

    def images_of(self, source: Path) -> set[str]:
        """Names of the images that came from a source, those that were quarantined included."""
        listed = self.quarantine.filter(pc.equal(self.quarantine["file"], str(source)))
        names, start = set(listed["image"].to_pylist()), 0
        for part in self.parts:
            count = part["counts"]["images"]
            if part["source"] == str(source):
                names.update(self.table["image"].slice(start, count).to_pylist())
            start += count
        return names

    def groups(self, level: Literal["project", "micrograph"]) -> np.ndarray:
        """What belongs together, str objects [n]: the project, or ``project/micrograph``."""
        project = self.table["project"].to_numpy()
        if level == "project":
            return project
        return project + "/" + self.table["micrograph"].to_numpy()

    def feature_matrix(self, names: Sequence[str]) -> np.ndarray:
        """float32 [n, F], transformed, not standardised; NaN where missing, or not in this set.

        Raises:
            SettingsError: there is no such feature.
        """
        matrix = np.full((self.n, len(names)), np.nan, np.float32)
        for i, feature in enumerate(chosen_features(self.kind, names)):
            if feature.name in self.features:
                matrix[:, i] = self.table[feature.name].to_numpy()
        return matrix


def _read_table(file: Path) -> pa.Table:
    try:
        if not file.is_file():  # a pipe would be waited for, for ever
            raise FileNotFoundError
        with file.open("rb") as opened:  # pyarrow itself takes no path that is not UTF-8
            return pq.read_table(opened)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError("cannot be read", file=file, remedy="ingest again") from error
