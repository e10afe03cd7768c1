"""Predictions on a prepared set: an ensemble's, each project judged by its profile, and the files of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.engine import local
from cryoray.errors import InternalError
from cryoray.formats.files import replacing
from cryoray.formats.names import METRICS, PREDICTIONS_TABLE
from cryoray.models.ensemble import MANIFEST, Ensemble
from cryoray.models.predict import profile_set
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import MEMBERS, OnProgress, Verdicts
from cryoray.settings import Settings


def predictions_of(
    judge: Ensemble,
    examples: PreparedSet,
    rows: np.ndarray,
    settings: Settings,
    on_progress: OnProgress,
    *,
    fold: int = 0,
    repeat: int = 0,
) -> pa.Table:
    """Judge rows (int64 [n], ascending) of a set: `predictions.parquet`; d3 is asked everywhere.

    Where the ensemble can, each project is judged by the profile of all of its images in the set.
    """
    size = len(rows) * examples.settings.box**2 * 4
    here = local.suffices(size, settings.evaluate.local_max_mib, settings.runtime)
    if not here:
        from cryoray.engine import pool, runtime

        runtime.connect(settings.runtime)
    judge_set = local.judge_set if here else pool.judge_set
    parts, threshold = [], np.full(len(rows), judge.threshold, np.float32)
    for some, within in with_profiles(judge, examples, rows):
        parts.append(judge_set(examples, rows[some], within, on_progress, everyone=True))
        threshold[some] = within.threshold
    judged = Verdicts.together(parts)
    if not np.array_equal(judged.rows, rows):
        raise InternalError(
            f"{len(rows):,} images went to the judges and {len(judged):,} came back"
        )
    n, named = len(rows), examples.table.take(rows)
    return pa.table(
        {
            **{name: named[name] for name in ("image", "project", "micrograph", "label")},
            **{
                name: judged.judged[name]
                for name in ("row", "score", "verdict", *MEMBERS, "reason")
            },
            "threshold": threshold,
            "fold": np.full(n, fold, np.int32),
            "repeat": np.full(n, repeat, np.int32),
        }
    )


def with_profiles(
    judge: Ensemble, examples: PreparedSet, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, Ensemble]]:
    """Places in ``rows`` (int64 [n], of a set) and who judges those: one judge of all, or one per project."""
    if not judge.takes_profile:
        yield np.arange(len(rows)), judge
        return
    judge, projects = judge.to(), examples.groups("project").astype(str)
    for project in np.unique(projects[rows]):
        profile = profile_set(examples, np.flatnonzero(projects == project), judge)
        yield np.flatnonzero(projects[rows] == project), judge.with_profile(profile)


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is one of ours, which may be replaced; a cross-validation has ensembles as well."""
    files = (METRICS, PREDICTIONS_TABLE)
    return all((folder / name).is_file() for name in files) and not any(
        folder.glob(f"*/{MANIFEST}")
    )


def write(folder: Path, predictions: pa.Table, numbers: Mapping[str, Any]) -> None:
    """Write `predictions.parquet` and `metrics.json` into a folder."""
    with replacing(folder / PREDICTIONS_TABLE) as temporary:
        pq.write_table(predictions, temporary)
    with replacing(folder / METRICS) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", "utf-8")
