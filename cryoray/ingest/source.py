"""Ray Data sources: row ranges that are read and prepared in one step, and sets already prepared.

Reading and preparing happen in the same read task, so no raw image ever crosses from one process to
another, and a task carries only where to read, never pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.data import Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata

from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import PreparedRows, RowRange
from cryoray.settings import PreparationSettings


class RowRangeDatasource(Datasource):
    """Prepared images of row ranges, one block per range.

    Columns: ``row`` int64, ``image`` float32 [box, box], ``features`` float32 [F], and ``reason``
    string, empty unless the row is quarantined (its image is zeros then). Rows come back as the
    ranges number them. Pass ``override_num_blocks=len(datasource)``: with fewer tasks than Ray wants
    by itself, it would cut the blocks into small pieces and not fuse what follows with the reading.

    Args:
        ranges: of one or several plans with equal features.
        settings: of the preparation.
    """

    #: Tasks beyond this many are worth less than what starting each costs; ranges share one then.
    MOST_TASKS = 2000

    def __init__(self, ranges: Sequence[RowRange], settings: PreparationSettings) -> None:
        super().__init__()
        self._ranges, self._settings = tuple(ranges), settings

    def __len__(self) -> int:
        """The number of read tasks to ask Ray for."""
        return max(1, min(len(self._ranges), self.MOST_TASKS))

    def get_name(self) -> str:
        """The name of the reading in Ray's dashboard."""
        return "ReadParticles"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all prepared images."""
        return sum(self._bytes(rows) for rows in self._ranges)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """Neighbouring ranges in at most ``parallelism`` tasks; pure and cheap, as Ray asks often."""
        tasks = []
        for some in np.array_split(np.arange(len(self._ranges)), min(parallelism, len(self))):
            ranges = [self._ranges[i] for i in some]
            tasks.append(
                ReadTask(
                    partial(_prepared_blocks, ranges, self._settings),
                    BlockMetadata(
                        num_rows=sum(len(rows.rows) for rows in ranges),
                        size_bytes=sum(self._bytes(rows) for rows in ranges),
                        exec_stats=None,
                        input_files=[str(rows.stack.path) for rows in ranges],
                    ),
                    per_task_row_limit=per_task_row_limit,
                )
            )
        return tasks

    def _bytes(self, rows: RowRange) -> int:
        return len(rows.rows) * (4 * self._settings.box**2 + rows.features.shape[1] * 4 + 16)


class PreparedDatasource(Datasource):
    """Images of prepared sets.

    Columns: ``set`` int64, which of the sets; ``row`` int64; ``image`` float32 [box, box];
    ``features`` float32 [F].

    Args:
        sets: folder of each set and its rows that are wanted, int64; None for all.
        names: of the features, in the order wanted; one that a set lacks is missing (NaN).
        rows_per_task: in one read task and block.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Path, np.ndarray | None]],
        names: Sequence[str],
        rows_per_task: int = 4096,
    ) -> None:
        super().__init__()
        self._names = tuple(names)
        self._parts: list[tuple[int, Path, np.ndarray]] = []
        for number, (path, rows) in enumerate(sets):
            prepared = PreparedSet.open(path)
            self._box = prepared.settings.box
            wanted = np.arange(prepared.n) if rows is None else np.asarray(rows, np.int64)
            cuts = range(rows_per_task, len(wanted), rows_per_task)
            self._parts += [(number, prepared.path, part) for part in np.split(wanted, cuts)]

    def __len__(self) -> int:
        """The number of read tasks to ask Ray for (``override_num_blocks``)."""
        return len(self._parts)

    def get_name(self) -> str:
        """The name of the reading in Ray's dashboard."""
        return "ReadPreparedSet"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the images."""
        return sum(len(rows) for _, _, rows in self._parts) * 4 * self._box**2

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """A task for each part, whatever the parallelism."""
        return [
            ReadTask(
                partial(_set_block, number, path, self._names, rows),
                BlockMetadata(
                    num_rows=len(rows),
                    size_bytes=len(rows) * 4 * self._box**2,
                    exec_stats=None,
                    input_files=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for number, path, rows in self._parts
        ]


def to_rows(batch: dict[str, np.ndarray]) -> PreparedRows:
    """A batch of `RowRangeDatasource` as what `prepare_range` returned."""
    good = batch["reason"] == ""
    bad = zip(batch["row"][~good].tolist(), batch["reason"][~good].tolist(), strict=True)
    return PreparedRows(
        rows=batch["row"][good],
        images=batch["image"][good],
        features=batch["features"][good],
        quarantined=tuple(bad),
    )


def _prepared_blocks(ranges: list[RowRange], settings: PreparationSettings) -> Iterable[Block]:
    # Ray runs a task per core; threads in each would only get in each other's way, and the order in
    # which threads add up would be part of the result.
    torch.set_num_threads(1)
    for rows in ranges:
        prepared = prepare_range(rows, settings)
        bad = len(prepared.quarantined)
        images = np.concatenate(
            [prepared.images, np.zeros((bad, settings.box, settings.box), np.float32)]
        )
        yield BlockAccessor.batch_to_block(
            {
                "row": np.concatenate(
                    [prepared.rows, [row for row, _ in prepared.quarantined]]
                ).astype(np.int64),
                "image": images if bad else prepared.images,
                "features": np.concatenate(
                    [
                        prepared.features,
                        np.full((bad, rows.features.shape[1]), np.nan, np.float32),
                    ]
                ),
                "reason": np.array(
                    [""] * len(prepared.rows) + [why for _, why in prepared.quarantined], object
                ),
            }
        )


def _set_block(
    number: int, path: Path, names: tuple[str, ...], rows: np.ndarray
) -> Iterable[Block]:
    prepared = PreparedSet.open(path)
    yield BlockAccessor.batch_to_block(
        {
            "set": np.full(len(rows), number),
            "row": rows,
            "image": prepared.images(rows),
            "features": prepared.feature_matrix(names)[rows],
        }
    )
