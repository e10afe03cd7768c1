"""Prepared sets that can be learned from in seconds: a bright blob in noise, or noise alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.preparation.plan import plan
from cryoray.preparation.shards import Part, divide, prepare_shard
from cryoray.preparation.writing import write_set
from cryoray.settings import IngestSettings, PreparationSettings
from tests.preparation.sources import write_source

BOX = 32
_AXIS = np.arange(BOX) - BOX // 2
_BLOB = np.exp(-(_AXIS[:, None] ** 2 + _AXIS**2) / (2 * (BOX / 8) ** 2)).astype(np.float32)


def write_labelled_set(
    folder: Path, project: str, *, n: int = 60, seed: int = 0, labelled: bool = True
) -> Path:
    """A set of 3n images in three micrographs, 60% of them particles; none labelled on request."""
    rng = np.random.default_rng(seed)
    keep = rng.random(3 * n) < 0.6
    stacks = [np.empty((n, BOX, BOX), np.float32) for _ in range(3)]
    for i, particle in enumerate(keep):  # images of a, b and c alternate in the STAR file
        noise = rng.normal(size=(BOX, BOX)).astype(np.float32)
        stacks[i % 3][i // 3] = noise + 2 * _BLOB * particle
    source = write_source(folder / f"{project}-source", stacks)
    settings = IngestSettings(preparation=PreparationSettings(box=BOX))
    labels = keep.astype(np.int8) if labelled else np.full(3 * n, -1, np.int8)
    parts = [Part(plan(source, settings.preparation, 64), project, labels, None)]
    out = folder / project
    shards = [prepare_shard(work, settings) for work in divide(parts, out, settings)]
    write_set(out, parts, shards, settings)
    return out
