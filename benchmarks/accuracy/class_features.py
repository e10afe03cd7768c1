"""Do the features of 2D classes tell what was kept, and what do they cost?

``python -m benchmarks.accuracy.class_features FOLDER…`` looks at folders of class averages with a selection
beside them, as ``cryoray ingest`` finds it. Without a folder the real data beside the project are
taken, and where there are none, the cost alone is measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from benchmarks.common import Row, main, result
from cryoray.formats.mrc import StackWriter
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import find_sources, open_source
from cryoray.preparation.class_features import class_columns
from cryoray.preparation.features import chosen_features, source_features

_REAL = Path(__file__).parents[3] / "shared/data"
_FOLDERS = ("class-averages-human", "class-averages-relion4")
#: Classes whose cost is measured: how many, and their side, px.
_CLASSES, _SIDE = 100, 96


def measure() -> dict[str, Any]:
    """AUROC of each feature by itself, below 0.5 where less is better; seconds per class in notes."""
    folders = [Path(name) for name in sys.argv[1:]] if __name__ == "__main__" else []
    folders = folders or [_REAL / name for name in _FOLDERS if (_REAL / name).is_dir()]
    compared = [feature for feature in chosen_features("class2d", None) if feature.within]
    names = list(dict.fromkeys(feature.name.rpartition("_")[0] for feature in compared))
    rows: list[Row] = [{"feature": name} for name in names]
    notes = [f"{_CLASSES} classes of {_SIDE} px: {_seconds():.2f} s"]
    for folder in folders:
        labels, tables = _labelled(folder, names)
        notes.append(
            f"{folder.name}: {len(labels)} classes, {np.count_nonzero(labels)} of them kept"
        )
        for row, *columns in zip(rows, *(table.T for table in tables), strict=True):
            for how, column in zip(("value", "rank", "z"), columns, strict=True):
                row[f"{folder.name}, {how}"] = _auroc(column, labels)
    question = (
        "How well does each feature of a 2D class, alone, tell the kept from the others (AUROC)?"
    )
    return result(question, rows, ratios=(), notes=notes)


def _labelled(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which classes were kept, bool [n], and float32 [n, F] of values, ranks and z-scores."""
    labels: list[np.ndarray] = []
    tables: list[list[np.ndarray]] = [[], [], []]
    for path in find_sources(folder, "class2d"):
        source, selection = open_source(path, "class2d"), find_selection(path)
        if selection is None:
            continue
        label = read_selection(selection, source)
        known = label >= 0
        labels.append(label[known] == 1)
        for how, table in zip(("", "_rank", "_z"), tables, strict=True):
            table.append(source_features(source, [f"{name}{how}" for name in names])[known])
    if not labels:
        raise SystemExit(f"{folder} has no class averages with a selection beside them")
    return np.concatenate(labels), [np.concatenate(table) for table in tables]


def _auroc(values: np.ndarray, labels: np.ndarray) -> float | None:
    known = np.isfinite(values)
    kept, others = values[known & labels], values[known & ~labels]
    if len(kept) < 5 or len(others) < 5:
        return None
    return float(mannwhitneyu(kept, others).statistic) / (len(kept) * len(others))


def _seconds() -> float:
    """The least of three runs over a stack of noise, which has more islands than any protein."""
    images = np.random.default_rng(0).normal(size=(_CLASSES, _SIDE, _SIDE)).astype(np.float32)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run_it025_classes.mrcs"
        with StackWriter(path, _SIDE, _SIDE, "float32", 3.0) as stack:
            stack.append(images)
        source = open_source(path, "class2d")
        for _ in range(3):
            start = time.perf_counter()
            class_columns(source, 150.0)
            times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main(measure)
