"""Which images of a prepared set an ensemble can be measured on, and which sets are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoray.errors import EnsembleError, SelectionError, SettingsError
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.prepared import PreparedSet

#: Settings that decide what a prepared image looks like. Diameter and contrast are the source's own:
#: they differ between projects so that prepared images do not.
PREPARATION_KEYS = ("box", "window", "clip")


def unseen(ensemble: Ensemble, examples: PreparedSet) -> np.ndarray:
    """Where a set holds images of groups that the ensemble does not know: bool [n]."""
    manifest = ensemble.manifest
    known = {*manifest.training_groups, *manifest.calibration_groups}
    groups = examples.groups(manifest.split_by)
    return np.array([group not in known for group in groups], bool)


def check_same_preparation(ensemble: Ensemble, examples: PreparedSet) -> None:
    """Refuse images of another kind, or prepared in another way than the ensemble's.

    Raises:
        EnsembleError: naming what differs.
    """
    ensemble.check_kind(examples.kind, examples.path)
    for name in PREPARATION_KEYS:
        theirs, ours = getattr(examples.settings, name), getattr(ensemble.preparation, name)
        if theirs != ours:
            raise EnsembleError(
                f"its images were prepared with {name} {theirs}, those of the ensemble"
                f" {ensemble.path} with {name} {ours}",
                file=examples.path,
                remedy=f"ingest the source again with {name} {ours}",
            )


def check_both_kinds(examples: PreparedSet, rows: np.ndarray) -> None:
    """Raise where the labels of rows (int64 [n]) are all the same.

    Raises:
        SelectionError: they are.
    """
    labels = examples.labels[rows]
    if labels.min() == labels.max():
        raise SelectionError(
            f"all {len(rows):,} labels in the groups to judge say"
            f" {'keep' if labels[0] else 'discard'}, so accuracy cannot be measured",
            file=examples.path,
            remedy="give a set whose selection has both",
        )


def no_labels(examples: PreparedSet) -> SelectionError:
    """What is raised of a set without labels."""
    return SelectionError(
        "none of its images has a label",
        file=examples.path,
        remedy="ingest the source again with --selection",
    )


def check_metadata(features: Sequence[str], path: Path | None = None) -> None:
    """Raise where there is nothing to ablate.

    Raises:
        SettingsError: no feature is used.
    """
    if not features:
        raise SettingsError(
            "there are no metadata to ablate",
            file=path,
            remedy="leave out --ablate, or use an ensemble that was trained with metadata",
        )
