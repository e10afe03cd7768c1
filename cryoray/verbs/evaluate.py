"""How good an ensemble is on groups that it has not seen: judged, measured, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cryoray.errors import EnsembleError
from cryoray.formats.files import replacing_folder
from cryoray.formats.names import REPORT
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import resolve
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, OnEvent, OnProgress, ignore
from cryoray.report.evaluation import write_page
from cryoray.settings import Settings
from cryoray.verbs import measuring
from cryoray.verbs.ablation import ablation_of
from cryoray.verbs.measuring import bound_held, bound_of, plain, prevalence_of, reasons_named
from cryoray.verbs.predictions import is_evaluation, predictions_of, write
from cryoray.verbs.suitability import (
    check_both_kinds,
    check_metadata,
    check_same_preparation,
    no_labels,
    unseen,
)


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
            done, in place of an older one of the same ensemble and set, or with
            ``settings.evaluate.replace`` of any.
        settings: the runtime's are used.
        on_progress: called with how many images were judged.
        on_event: called with what was left out, and with the numbers.

    Returns:
        what `metrics.json` holds: the numbers of `measuring.measure`, ``bound_held`` and ``prevalence``,
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
    of = {"ensemble": [judge.digest], "prepared set": [str(examples.path.absolute())]}
    replace = settings.evaluate.replace
    out = Path(out).absolute()
    with replacing_folder(out, "evaluation", is_evaluation, of, replace=replace) as partial:
        predictions = predictions_of(judge, examples, rows, settings, on_progress)
        bound = bound_of(judge)
        numbers = measuring.measure(examples, predictions, judge.manifest.split_by, on_event)
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
