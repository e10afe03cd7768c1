"""The network that names reasons, added to an ensemble from sets whose labels say why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cryoray.formats.files import replacing
from cryoray.formats.names import CARD, TRAINING
from cryoray.models.ensemble import Ensemble, training_record
from cryoray.models.fit import Epoch
from cryoray.models.reasons import learn, section
from cryoray.preparation.examples import SetExamples
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import TrainSettings


def train_reasons(
    sets: Sequence[Path],
    ensemble: Path,
    settings: TrainSettings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> None:
    """Have an ensemble name why it discards, learned from the discards of known reason in some sets.

    Only groups that the ensemble was trained on are used. Where the sets have no reasons, or too few to
    learn from, the ensemble stays as it is. It runs in this process: one small network on some of the
    images takes less than starting workers for it.

    Args:
        sets: folders of prepared sets, of the ensemble's box.
        ensemble: folder of the ensemble, which is written anew, with another digest.
        settings: ``fit``, ``folds``, ``seed`` and ``gpu`` are used.
        on_progress: called after every epoch.
        on_event: ``reasons.learned``, with the share named rightly on groups not seen.

    Raises:
        EnsembleError: there is none.
        InputError: a set cannot be read.
    """
    judge = Ensemble.load(ensemble)
    known = judge.manifest.training_groups
    level = judge.manifest.split_by
    rows, reasons = [], []
    for prepared in map(PreparedSet.open, sets):
        why = prepared.reasons
        mine = np.isin(prepared.groups(level), known) & (prepared.labels == 0) & (why >= 0)
        rows.append(np.flatnonzero(mine))
        reasons.append(why[mine])
    discards = SetExamples(sets, rows, ())
    done = 0

    def report_epoch(epoch: Epoch) -> None:
        nonlocal done
        done += 1
        note = f"reasons: loss {epoch.loss:.3f}"
        on_progress(Progress("reasons", done, 2 * settings.fit.epochs, "epochs", note))

    learned = learn(
        np.concatenate(reasons),
        discards.groups(level),
        discards.images,
        settings,
        device="cuda" if settings.gpu and torch.cuda.is_available() else "cpu",
        on_epoch=report_epoch,
    )
    if learned is None:
        return
    record = {"labels": learned.labels, "confusion": learned.confusion.tolist()}
    with replacing(ensemble / TRAINING) as temporary:
        text = json.dumps({**training_record(ensemble), "reasons": record}, indent=1)
        temporary.write_text(text, encoding="utf-8")
    card = (ensemble / CARD).read_text(encoding="utf-8")
    before, _, _ = card.partition("\n## Reasons\n")
    judge.with_reasons(learned.labels, learned.network).save(
        ensemble, before.rstrip("\n") + "\n" + section(learned.labels, learned.confusion)
    )
    measured = int(learned.confusion.sum())
    on_event(
        Event(
            "reasons.learned",
            {
                "reasons": list(learned.labels),
                "discards": sum(map(len, rows)),
                "held_out": measured,
                "right": float(np.trace(learned.confusion)) / measured if measured else None,
            },
        )
    )
