"""Ray Data sources: row ranges that are read and prepared in one step, and sets already prepared.

Reading and preparing happen in the same read task, so no raw image ever crosses from one process to
another, and a task carries only where to read, never pixels. An ingestion's task writes too, and its
images never enter Ray's object store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata

from cryoray.errors import SettingsError
from cryoray.preparation.plan import grouped
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.shards import Shard, Work, prepare_shard
from cryoray.records import PreparedRows, RowRange
from cryoray.settings import IngestSettings, PreparationSettings


class _Tasks(Datasource):
    """A list of things to do, neighbours together in one read task; each yields one block.

    Args:
        name: of the reading in Ray's dashboard.
        things: to do.
        do: makes a block of one.
        most: tasks; more are worth less than what starting each costs, so things share one then.
    """

    def __init__(
        self, name: str, things: Sequence[Any], do: Callable[[Any], Block], most: int = 2000
    ) -> None:
        super().__init__()
        self._name, self._things, self._do, self._most = name, tuple(things), do, most

    def __len__(self) -> int:
        """The number of read tasks to ask Ray for (``override_num_blocks``).

        With fewer tasks than Ray wants by itself, it would cut the blocks into small pieces and not
        fuse what follows with the reading.
        """
        return max(1, min(len(self._things), self._most))

    def get_name(self) -> str:
        """The name of the reading in Ray's dashboard."""
        return self._name

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks."""
        return sum(self._bytes(thing) for thing in self._things)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """Neighbours in at most ``parallelism`` tasks; pure and cheap, as Ray asks often."""
        tasks = []
        for some in np.array_split(np.arange(len(self._things)), min(parallelism, len(self))):
            things = [self._things[i] for i in some]
            tasks.append(
                ReadTask(
                    partial(_blocks, self._do, things),
                    BlockMetadata(
                        num_rows=sum(self._rows(thing) for thing in things),
                        size_bytes=sum(self._bytes(thing) for thing in things),
                        exec_stats=None,
                        input_files=None,
                    ),
                    per_task_row_limit=per_task_row_limit,
                )
            )
        return tasks

    def _rows(self, thing: Any) -> int:
        raise NotImplementedError

    def _bytes(self, thing: Any) -> int:
        raise NotImplementedError


class RowRangeDatasource(_Tasks):
    """Prepared images of row ranges, one block for each 64 to 128 raw MiB of neighbours.

    Columns: ``row`` int64, ``image`` float32 [box, box], ``features`` float32 [F], and ``reason``
    string, empty unless the row is quarantined (its image is zeros then). Rows come back as the
    ranges number them.

    Args:
        ranges: of one or several plans with equal features.
        settings: of the preparation.
        range_mib: raw MiB for a block.
    """

    def __init__(
        self, ranges: Sequence[RowRange], settings: PreparationSettings, range_mib: int = 64
    ) -> None:
        super().__init__(
            "ReadParticles", grouped(ranges, range_mib), partial(_prepared_block, settings)
        )
        self._settings = settings

    def _rows(self, thing: list[RowRange]) -> int:
        return sum(len(rows.rows) for rows in thing)

    def _bytes(self, thing: list[RowRange]) -> int:
        row = 4 * self._settings.box**2 + thing[0].features.shape[1] * 4 + 16
        return row * self._rows(thing)


class ShardDatasource(_Tasks):
    """Work on a set, each done where it is read: only what became of it travels, in one row.

    Columns: ``part``, ``images``, ``quarantined``, ``bytes`` int64; ``path`` string.

    Args:
        work: what is to be done.
        settings: of the ingestion.
        cores: of all workers.
    """

    #: Few enough that the driver, which may share the cores, has little to do; enough that no core
    #: waits long for the last.
    TASKS_PER_CORE = 16

    def __init__(self, work: Sequence[Work], settings: IngestSettings, cores: float) -> None:
        most = max(1, int(self.TASKS_PER_CORE * cores))
        super().__init__("PrepareParticles", work, partial(_shard_block, settings), most)

    def _rows(self, thing: Work) -> int:
        return 1

    def _bytes(self, thing: Work) -> int:
        return 256


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


def shards_by_ray(work: Sequence[Work], settings: IngestSettings, name: str) -> Iterator[Shard]:
    """Have Ray do some work on the set ``name``: the shards as they come, in any order.

    Raises:
        SettingsError: GPUs are asked for, and the cluster has none.
    """
    resources = ray.cluster_resources()
    gpus, cores = resources.get("GPU", 0.0), max(1.0, resources.get("CPU", 1.0))
    if settings.gpu and not gpus:
        raise SettingsError("a GPU is requested, and Ray has none", remedy="leave out --gpu")
    datasource = ShardDatasource(work, settings, cores)
    dataset = ray.data.read_datasource(
        datasource,
        override_num_blocks=len(datasource),
        # All workers of a GPU share it: one alone would wait for its own reading half of the time.
        num_gpus=floor(1e4 * min(1.0, gpus / cores)) / 1e4 if settings.gpu else None,
    )
    dataset.set_name(f"ingest {name}")
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from (Shard(**row) for row in batch.to_pylist())


def _blocks(do: Callable[[Any], Block], things: list[Any]) -> Iterable[Block]:
    # Ray runs a task per core; threads in each would only get in each other's way, and the order in
    # which threads add up would be part of the result.
    torch.set_num_threads(1)
    return map(do, things)


def _shard_block(settings: IngestSettings, work: Work) -> Block:
    made = prepare_shard(work, settings, "cuda" if settings.gpu else "cpu")
    return pa.Table.from_pylist([asdict(made)])


def _prepared_block(settings: PreparationSettings, ranges: list[RowRange]) -> Block:
    made = [prepare_range(rows, settings) for rows in ranges]
    bad = [(row, why) for prepared in made for row, why in prepared.quarantined]
    rows = np.concatenate([*(prepared.rows for prepared in made), [row for row, _ in bad]])
    images = [prepared.images for prepared in made]
    features = [prepared.features for prepared in made]
    if bad:
        images.append(np.zeros((len(bad), settings.box, settings.box), np.float32))
        features.append(np.full((len(bad), features[0].shape[1]), np.nan, np.float32))
    block = BlockAccessor.batch_to_block(
        {
            "row": rows.astype(np.int64),
            "image": images[0] if len(images) == 1 else np.concatenate(images),
            "features": np.concatenate(features),
        }
    )
    # As strings of Arrow: an array of Python's would travel pickled.
    reasons = [""] * (len(rows) - len(bad)) + [why for _, why in bad]
    return block.append_column("reason", pa.array(reasons, pa.string()))


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
