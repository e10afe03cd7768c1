"""What an ensemble is worth on groups that it has not seen: judged, measured, shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from cryoray.engine import local
from cryoray.errors import EnsembleError, InternalError
from cryoray.formats.files import replacing_folder
from cryoray.formats.names import REPORT
from cryoray.metrics import accuracy
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import profile_set
from cryoray.models.registry import resolve
from cryoray.preparation.examples import Level
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import MEMBERS, Event, OnEvent, OnProgress, Verdicts, ignore
from cryoray.report.evaluation import write_page
from cryoray.settings import Settings
from cryoray.verbs import ablation
from cryoray.verbs.measuring import (
    bound_held,
    bound_of,
    check_both_kinds,
    check_metadata,
    is_evaluation,
    no_labels,
    plain,
    prevalence_of,
    reasons_named,
    write,
)
from cryoray.verbs.measuring import (
    measure as measured,
)

#: Settings that decide what a prepared image looks like. Diameter and contrast are the source's own:
#: they differ between projects so that prepared images do not.
PREPARATION_KEYS = ("box", "window", "clip")


def evaluate(
    ensemble: Path,
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Judge the labelled images of groups in which the ensemble was neither trained nor calibrated.

    Args:
        ensemble: its folder.
        prepared: a prepared set with labels.
        out: folder of `metrics.json`, `predictions.parquet` and `report.html`; appears when all is
            done, in place of an older one.
        settings: the runtime's are used.
        on_progress: called with how many images were judged.
        on_event: called with what was left out, and with the numbers.

    Returns:
        what `metrics.json` holds: the contract's numbers, ``bound_held`` and ``prevalence``,
        ``ablation`` where ``settings.evaluate.ablate``, and ``reasons`` where the ensemble names them
        and the set knows some.

    Raises:
        EnsembleError: the set holds images of another kind or look, or no group that is new.
        SelectionError: labels are missing or of one kind only.
        InputError: ``out`` exists and holds something else.
    """
    judge, examples = Ensemble.load(ensemble), PreparedSet.open(prepared)
    check_same_preparation(judge, examples)
    new = unseen(judge, examples)
    labelled = examples.labels >= 0
    if not labelled.any():
        raise no_labels(examples)
    if not (new & labelled).any():
        raise EnsembleError(
            f"the ensemble {ensemble} was trained or calibrated in every labelled group of this set",
            file=examples.path,
            remedy="train with --hold-out, or give a set of other projects",
        )
    rows = np.flatnonzero(new & labelled)
    check_both_kinds(examples, rows)
    if settings.evaluate.ablate:
        check_metadata(judge.features, judge.path)
    left_out = {"seen": int((~new).sum()), "unlabelled": int((new & ~labelled).sum())}
    counts = {f"left_out_{why}": count for why, count in left_out.items()}
    on_event(Event("evaluation.started", {"images": len(rows), **counts}))
    with replacing_folder(Path(out).absolute(), "evaluation", is_evaluation) as partial:
        predictions = predictions_of(judge, examples, rows, settings, on_progress)
        bound = bound_of(judge)
        numbers = measured(examples, predictions, judge.manifest.split_by, on_event)
        numbers["left_out"] = examples.n - len(rows)
        numbers["bound_held"] = bound_held(examples, predictions, judge.manifest.split_by, bound)
        numbers["prevalence"] = prevalence_of(judge, predictions)
        numbers |= reasons_named(examples, predictions)
        if settings.evaluate.ablate:
            numbers["ablation"] = ablation_of(judge, examples, rows, settings)
        write(partial, predictions, numbers)
        write_page(
            partial / REPORT,
            judge,
            examples,
            predictions,
            numbers,
            rows=rows,
            left_out=left_out,
            bound=bound,
            ensemble=ensemble,
            out=out,
        )
    on_event(Event("evaluation.finished", plain(numbers)))
    return numbers


def measure(
    ensemble: str | Path,
    prepared: Path,
    out: Path,
    settings: Settings,
    on_progress: OnProgress,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Evaluate an ensemble that is named as in the registry, or by its folder.

    Returns:
        what ``metrics.json`` holds.
    """
    judge = resolve(ensemble, settings.registry)
    return evaluate(judge, prepared, out, settings, on_progress=on_progress, on_event=on_event)


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
    for some, within in within_projects(judge, examples, rows):
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


def within_projects(
    judge: Ensemble, examples: PreparedSet, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, Ensemble]]:
    """Places in ``rows`` (int64 [n], of a set) and who judges those: one judge of all, or one per project."""
    if not judge.has_context:
        yield np.arange(len(rows)), judge
        return
    judge, projects = judge.to(), examples.groups("project").astype(str)
    for project in np.unique(projects[rows]):
        profile = profile_set(examples, np.flatnonzero(projects == project), judge)
        yield np.flatnonzero(projects[rows] == project), judge.within(profile)


def by_metadata(
    judge: Ensemble,
    examples: PreparedSet,
    others: np.ndarray,
    rows: np.ndarray,
    level: Level,
    settings: Settings,
    predictions: pa.Table,
) -> pa.Table:
    """Predictions for a fold's rows by networks that learned from other rows' metadata alone."""
    features = examples.feature_matrix(judge.features)
    metadata_score, threshold = ablation.metadata_alone(
        features[others],
        examples.labels[others],
        {name: examples.groups(name)[others] for name in get_args(Level)},
        examples.groups(level)[others],
        settings.train,
    )
    n = len(rows)
    alone = {
        "score": metadata_score(features[rows]),
        "threshold": np.full(n, threshold, np.float32),
    }
    for name, values in {**alone, "verdict": [""] * n}.items():
        column = pa.array(values)
        predictions = predictions.set_column(predictions.column_names.index(name), name, column)
    return predictions


def ablation_of(
    judge: Ensemble, examples: PreparedSet, rows: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """What becomes of an ensemble's scores where its metadata are hidden, or a column is shuffled."""
    most = settings.evaluate.ablate_images
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    groups, labels = examples.groups(judge.manifest.split_by)[rows], examples.labels[rows] == 1
    features = examples.feature_matrix(judge.features)[rows]
    predictor = ablation.CachedPredictor(judge.to(), examples.images, rows)
    given = {"both": features, "image": np.full_like(features, np.nan)}
    return {
        "hidden": {
            name: ablation.summary(
                accuracy.metrics(
                    labels,
                    predictor.score(known),
                    threshold=judge.threshold,
                    review=np.zeros(len(rows), bool),
                    groups=groups,
                )
            )
            for name, known in given.items()
        },
        "permutation": ablation.importance(
            predictor,
            features,
            judge.features,
            labels,
            groups,
            judge.threshold,
            shuffles=settings.evaluate.shuffles,
        ),
    }
