"""An ensemble set right for a new project: from no labels, from twenty clicks, or from hundreds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from cryoray.boosting import adaptation, operating_point, prevalence
from cryoray.engine import local
from cryoray.errors import InputError
from cryoray.formats.names import CARD, TRAINING
from cryoray.metrics import accuracy
from cryoray.models.adaptation import adapted, anew, left_out, score_of
from cryoray.models.ensemble import Ensemble, Manifest, training_record
from cryoray.models.predict import profile_set
from cryoray.preparation.labelling import labels_from
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import Settings
from cryoray.verbs.suitability import check_same_preparation

RECORD = "adaptation.json"

#: Images judged together.
_BATCH = 512


def adapt(
    ensemble: Path,
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    labels: Path | None = None,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Recalibrate an ensemble for the project that a set is of, and draw its threshold anew.

    Without labels all members are changed alike, so the promise about good images lost is kept; with ten and
    more the line moves to where this project's labels and scores say that it is most accurate, at few good
    images lost: see `boosting.adaptation`. From a hundred labelled keeps on each member has a sigmoid of its
    own and the threshold a bound that rests on this project's labels alone. Networks stay as they are. An
    ensemble that judges within projects is set right for this one's profile.

    Args:
        ensemble: its folder.
        prepared: a set of the project, prepared as the ensemble's were. Labels that it has itself are
            not learned from: they are what before and after are measured on.
        out: folder of the adapted ensemble; must not exist.
        settings: ``adapt`` and ``train.operating_point`` are used.
        labels: a selection that labels some of its images.
        on_progress: called with how many images were judged.
        on_event: ``adapt.done``, with the record.

    Returns:
        what `adaptation.json` holds: ``labels``, ``prevalence`` (estimated), ``change`` (null where each
        member was calibrated anew), ``tables`` (before and after), ``operating_point``.

    Raises:
        InputError: ``out`` exists.
        EnsembleError: the set is of another kind or look.
        SelectionError: the labels are of no image of the set, or hundreds of one kind only.
    """
    out = Path(out).absolute()
    if out.exists():
        raise InputError("exists already", file=out, remedy="give --out another name, or remove it")
    chosen = settings.train.operating_point
    judge, examples = Ensemble.load(ensemble), PreparedSet.open(prepared)
    check_same_preparation(judge, examples)
    clicked = np.full(examples.n, -1, np.int8) if labels is None else labels_from(examples, labels)
    rows = _some(examples, clicked, settings.adapt.images)
    inside = judge.to()
    if judge.takes_profile:
        inside = judge.with_profile(profile_set(examples, np.arange(examples.n), judge))
    member_logits = _logits(inside, examples, rows, on_progress)
    given, own = clicked[rows], examples.labels[rows]
    known = given >= 0
    keep = given[known] == 1

    before = inside.manifest
    plain = score_of(before, member_logits)
    share = prevalence.estimate(plain, before.prevalence)
    places = np.flatnonzero(known)
    few = int(keep.sum()) < adaptation.ENOUGH_KEEPS
    if few:
        change = adaptation.fit_change(plain[known], keep, share.shift)
        after = adapted(before, change, plain, places, keep, share.estimate, chosen)
    else:
        change = None
        groups = {level: examples.groups(level)[rows][known] for level in ("project", "micrograph")}
        after = anew(before, member_logits[known], keep, groups, labels, chosen)
    point = dict(after.operating_point)
    lost = int((score_of(after, member_logits[known])[keep] < np.float32(after.threshold)).sum())
    point["labels_here"] = {
        "keep": int(keep.sum()),
        "discard": int((~keep).sum()),
        "lost": lost,
        # What these labels alone would let one promise of this project.
        "false_negative_rate_at_most": operating_point.clopper_pearson_upper(
            lost, max(1, int(keep.sum())), chosen.confidence
        ),
    }
    touched = examples.groups(before.split_by)[rows][known]
    after = after.model_copy(
        update={
            "operating_point": point,
            "digest": "",
            "calibration_groups": tuple(sorted({*before.calibration_groups, *touched})),
        }
    )

    tables = {}
    if len(keep):
        tables["labels given, each left out in turn"] = _compare(
            keep,
            (plain[known], before.threshold),
            left_out(before, member_logits, places, keep, share, chosen, few=few),
        )
    other = (own >= 0) & ~known
    if other.any():
        tables["the set's own labels of other images"] = _compare(
            own[other] == 1,
            (plain[other], before.threshold),
            (score_of(after, member_logits[other]), after.threshold),
        )
    record: dict[str, Any] = {
        "of": judge.digest,
        "set": examples.digest,
        "labels": {"keep": int(keep.sum()), "discard": int((~keep).sum())},
        "prevalence": share.as_json(),
        "change": None if change is None else {"stretch": change.stretch, "shift": change.shift},
        "tables": tables,
        "operating_point": point,
        "threshold": after.threshold,
    }
    made = _write(judge, judge.with_lines(after, inside), after, out, record)
    on_event(Event("adapt.done", {"ensemble": str(out), "digest": made.digest, **record["labels"]}))
    return record


def _some(examples: PreparedSet, clicked: np.ndarray, most: int) -> np.ndarray:
    """The rows that are looked at: all with a click, and of the others as many as there is time for."""
    chosen = np.flatnonzero(clicked >= 0)
    others = np.flatnonzero(clicked < 0)
    left = max(0, most - len(chosen))
    if len(others) > left:
        others = np.random.default_rng(0).choice(others, left, replace=False)
    return np.sort(np.concatenate([chosen, others]))


def _logits(
    judge: Ensemble, examples: PreparedSet, rows: np.ndarray, on_progress: OnProgress
) -> np.ndarray:
    """What the members say before calibration, float32 [n, 3]."""
    judge = judge.to()
    features = examples.feature_matrix(judge.features)[rows]
    member_logits, done = np.empty((len(rows), 3), np.float32), 0

    def do(here: slice) -> slice:
        member_logits[here] = judge.logits(examples.images(rows[here]), features[here])
        return here

    pieces = [slice(start, start + _BATCH) for start in range(0, len(rows), _BATCH)]
    for here in local.in_threads(do, pieces):
        done += len(rows[here])
        on_progress(Progress("judge", done, len(rows), "images"))
    return member_logits


def _compare(
    keep: np.ndarray,
    before: tuple[np.ndarray, float],
    after: tuple[np.ndarray, float | np.ndarray],
) -> dict[str, dict[str, float | int | None]]:
    """The numbers that adaptation may change, before and after."""
    table = {}
    for name, (scores, threshold) in (("before", before), ("after", after)):
        found = accuracy.confusion(keep, scores, threshold)
        table[name] = {
            "images": found.n,
            "accuracy": found.accuracy,
            "false_negative_rate": found.false_negative_rate,
            "false_positive_rate": found.false_positive_rate,
            "ece": accuracy.reliability(keep, scores).ece,
            "log_loss": adaptation.log_loss(scores, keep),
        }
    return table


def _write(
    judge: Ensemble, manifest: Manifest, after: Manifest, out: Path, record: Mapping[str, Any]
) -> Ensemble:
    """The folder of the adapted ensemble, which appears when it is complete.

    Args:
        judge: that it was adapted from.
        manifest: of the adapted one.
        after: its lines in this project.
        out: folder.
        record: `adaptation.json`.
    """
    assert judge.path is not None
    partial = out.with_name(f"{out.name}.partial")
    rmtree(partial, ignore_errors=True)
    adapted = copy(judge.to("cpu"))
    adapted.manifest = manifest
    card = (judge.path / CARD).read_text("utf-8") if (judge.path / CARD).is_file() else ""
    counts = record["labels"]
    lead = (
        f"# Adapted to one project\n\nFrom the ensemble `{judge.digest[:16]}` with {counts['keep']} labels"
        f" keep and {counts['discard']} discard of that project; the networks are unchanged. Keep where"
        f" score ≥ {after.threshold:.4f}: {after.operating_point['method']}. What stands below is of the"
        " ensemble that it was adapted from.\n\n"
    )
    made = adapted.save(partial, lead + card)
    texts = {RECORD: dict(record), TRAINING: training_record(judge.path)}
    for name, content in texts.items():
        if content:
            (partial / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    partial.rename(out)
    return made
