"""Train an ensemble on prepared sets: three members by boosting, calibrated on held-out groups."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.boosting.filtering import folds_of_groups
from cryoray.boosting.operating_point import ask_third
from cryoray.boosting.voting import score
from cryoray.engine import runtime, training
from cryoray.errors import InputError
from cryoray.formats.files import replacing
from cryoray.formats.names import TRAINING
from cryoray.models.card import card
from cryoray.models.ensemble import HELD_OUT, Calibration, DrawnLine, Ensemble, Manifest
from cryoray.models.fit import Epoch
from cryoray.models.networks import DEFAULT_MEMBERS
from cryoray.models.rounds import Boosted, boost, record
from cryoray.preparation.examples import Level, SetExamples, gather
from cryoray.records import Event, OnEvent, OnProgress, ignore
from cryoray.settings import Settings
from cryoray.verbs import train_context
from cryoray.verbs.train_reasons import train_reasons

#: Says in the folder of a training, and later in that of its ensemble, which training it is of.
_RUN = "run.json"


def train(
    sets: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> Path:
    """Train d1, d2 and d3 on prepared sets and write the ensemble.

    Where labels of the sets say why images were discarded, it learns to name reasons, too; of many
    projects it learns to judge within a project (`train_context`).

    A run that was killed goes on where it stopped when it is called again with the same sets, settings
    and ``out``: finished rounds are not redone, a round goes on after its last epochs, and what is
    finished stays as it is. It works in ``OUT.partial`` and renames that in the end.

    Args:
        sets: folders of prepared sets.
        out: folder of the ensemble; must not exist, unless it is of this very training.
        settings: ``train`` and ``runtime`` are used.
        on_progress: called after every epoch of every fit.
        on_event: called with what each round found.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: sets, labels or settings that cannot be trained on, or ``out`` is something else.
        OSError: a disk is full.
    """
    out = Path(out).absolute()
    sets = [Path(path).absolute() for path in sets]
    examples, level = gather(sets, settings.train)
    identity = _identity(examples, settings)
    if _is_of(out, identity):
        # Whoever made it may have been killed before that.
        shutil.rmtree(out / "rounds", ignore_errors=True)
        return out
    if out.exists():
        raise InputError("exists already", file=out, remedy="give --out another name, or remove it")
    run = _open_run(out, identity)
    groups = examples.groups(level)
    fold_of = folds_of_groups(groups, settings.train.folds, settings.train.seed)
    runtime.connect(settings.runtime)
    fits = training.RayFits(examples, settings, run, len(np.unique(fold_of)) + 1, on_progress)
    boosted = boost(
        examples,
        {"project": examples.groups("project"), "micrograph": examples.groups("micrograph")},
        fold_of,
        settings.train,
        fit_all=fits,
        held_out=training.held_out(examples, settings),
        weights=examples.particles,
        store=run / "rounds",
        on_event=on_event,
    )
    ensemble = write_ensemble(boosted, fits.curves(), examples, level, settings, run)
    if settings.train.reasons:
        train_reasons(sets, run, settings.train, on_progress=on_progress, on_event=on_event)
        ensemble = Ensemble.load(run)
    if train_context.wanted(examples, settings.train):
        train_context.train_context(
            sets, run, run / "rounds", settings.train, on_progress=on_progress, on_event=on_event
        )
        ensemble = Ensemble.load(run)
    run.rename(out)
    shutil.rmtree(out / "rounds")
    on_event(
        Event(
            "train.done",
            {
                "ensemble": str(out),
                "digest": ensemble.digest,
                "threshold": ensemble.threshold,
                "operating_point": ensemble.manifest.operating_point,
                "bound": boosted.bound,
                "examples": len(examples),
            },
        )
    )
    return out


def _identity(examples: SetExamples, settings: Settings) -> str:
    """The same for the same training."""
    meant = {
        "sets": [[str(s.path), s.digest] for s in examples.sets],
        # How many workers there are changes when things happen, not what comes out; reasons and context
        # come last.
        "train": settings.train.model_dump(
            mode="json", exclude={"workers", "gpu", "reasons", "context", "context_steps"}
        ),
        "members": [m.model_dump(mode="json") for m in DEFAULT_MEMBERS],
    }
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()


def _is_of(folder: Path, identity: str) -> bool:
    """Whether a folder is of this very training."""
    note = folder / _RUN
    return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == identity


def _open_run(out: Path, identity: str) -> Path:
    """The working folder: an unfinished run of the very same training, or a new one."""
    run = out.with_name(out.name + ".partial")
    if _is_of(run, identity):
        return run
    if run.exists():
        shutil.rmtree(run)
    with replacing(run / _RUN) as temporary:
        temporary.write_text(json.dumps(identity), encoding="utf-8")
    return run


def write_ensemble(
    boosted: Boosted,
    curves: Sequence[Epoch],
    examples: SetExamples,
    level: Level,
    settings: Settings,
    folder: Path,
) -> Ensemble:
    """Write the files of an ensemble that was boosted on these examples into ``folder``, which exists."""
    groups = tuple(sorted(set(examples.groups(level))))
    first, *others = examples.sets
    same_diameter = all(s.settings.diameter == first.settings.diameter for s in others)
    preparation = first.settings.model_copy(
        update={"features": examples.names, "contrast": "auto"}
        | ({} if same_diameter else {"diameter": None})
    )
    c1, c2, c3 = (Calibration(slope=c.slope, offset=c.offset) for c in boosted.calibration)
    d1, d2, d3 = (network.config for network in boosted.networks)
    manifest = Manifest(
        kind=first.kind,
        members=(d1, d2, d3),
        features=examples.names,
        preparation=preparation,
        calibration=(c1, c2, c3),
        threshold=boosted.point.threshold,
        review=boosted.review,
        operating_point=boosted.point.as_json(),
        operating_points={
            policy: DrawnLine.model_validate(line.as_json())
            for policy, line in boosted.lines.items()
        },
        expectation=tuple(boosted.expectation),
        prevalence=float(np.mean(examples.labels == 1)),
        split_by=level,
        training_groups=groups,
        # Cross-fitting: every group calibrates the networks that were not trained on it.
        calibration_groups=groups,
    )
    with replacing(folder / TRAINING) as temporary:
        temporary.write_text(record(boosted, curves, examples.column("image")), encoding="utf-8")
    _write_held_out(boosted, examples, folder / HELD_OUT)
    text = card(manifest, boosted, settings.train, [(s.path.name, s.digest) for s in examples.sets])
    return Ensemble(manifest, boosted.networks).save(folder, text)


def _write_held_out(boosted: Boosted, examples: SetExamples, file: Path) -> None:
    """Each image's scores by networks that had not seen its group, for whoever wants to look closer."""
    d1, d2, d3 = boosted.probabilities.T
    third = ask_third(d1, d2, d3, boosted.point.threshold)
    columns = {name: examples.column(name) for name in ("image", "project", "micrograph")}
    table = pa.table(
        columns
        | {
            "keep": examples.labels == 1,
            "d1": d1,
            "d2": d2,
            "d3": pa.array(third, from_pandas=True),
        }
        | {"score": score(d1, d2, third), "suspected": boosted.suspects}
    )
    with replacing(file) as temporary:
        pq.write_table(table, temporary)
