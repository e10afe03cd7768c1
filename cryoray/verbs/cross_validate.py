"""Train again for each fold of groups and judge the fold: how good a training is on unseen groups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cryoray.boosting.filtering import folds_of_groups
from cryoray.errors import InputError, InternalError, SettingsError
from cryoray.formats.names import REPORT
from cryoray.metrics import accuracy
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.examples import Level
from cryoray.preparation.joined import JoinedSets
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, OnEvent, OnProgress, ignore
from cryoray.report.cross_validation import OF_A_FOLD, write_page
from cryoray.settings import Settings
from cryoray.verbs import ablation
from cryoray.verbs.measuring import bound_held, measure, plain
from cryoray.verbs.predictions import predictions_of, write
from cryoray.verbs.suitability import check_both_kinds, check_metadata, no_labels, unseen
from cryoray.verbs.train import train as train_ensemble

#: Of which cross-validation an unfinished folder is.
RUN = "run.json"

#: Folder of the ensembles that were trained without metadata.
WITHOUT = "without-metadata"


class Train(Protocol):
    """`cryoray.verbs.train.train`, or what trains in its place."""

    def __call__(
        self,
        sets: Sequence[Path],
        out: Path,
        settings: Settings,
        *,
        on_progress: OnProgress,
        on_event: OnEvent,
    ) -> Path:
        """Train an ensemble on ``sets``, without the groups in ``settings.train.hold_out``."""


def cross_validate(
    sets: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    train: Train = train_ensemble,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Train anew for each fold of groups and judge the fold, so that each image is judged once.

    Every fold has its own ensemble with its own threshold; decisions are made with that. Groups are
    projects, or micrographs where there is one project (``settings.train.split_by`` may say which).
    A run that was killed goes on where it stopped when it is called again with the same sets,
    settings and ``out``: ensembles that are finished are not trained again.

    Args:
        sets: prepared sets with labels.
        out: folder of the pooled numbers and the ensembles, `fold-1` …; must not exist. In
            `predictions.parquet`, ``row`` counts through the sets in the order in which they were given.
        settings: ``cross_validate`` says how many folds and repeats, and whether to ablate; ``train`` is
            that of each training, whose ``hold_out`` is the fold's groups.
        train: `cryoray.verbs.train.train`, or what trains in its place.
        on_progress: called as training and judging go on.
        on_event: called when a fold is done.

    Returns:
        what `metrics.json` holds: the numbers of `measuring.measure` over all images (over all repeats, where
        there are several), ``bound_held``, ``folds`` with each fold's own, their ``spread_over_folds``,
        and, where ``settings.cross_validate.ablate``, ``ablation``: each fold is then also trained without
        metadata, and without images.

    Raises:
        SelectionError: labels are missing or of one kind only.
        SettingsError: there are fewer groups than folds.
        InputError: ``out`` exists, or the sets do not go together.
    """
    examples = JoinedSets(sets)
    folds, repeats = settings.cross_validate.folds, settings.cross_validate.repeats
    labelled = np.flatnonzero(examples.labels >= 0)
    if not len(labelled):
        raise no_labels(examples)
    check_both_kinds(examples, labelled)
    level = _level(examples, settings)
    groups = examples.groups(level)[labelled]
    _enough_groups(examples, groups, level, folds)
    ablate = settings.cross_validate.ablate
    if ablate:
        check_metadata(
            examples.features if settings.train.features is None else settings.train.features
        )
    out = Path(out).absolute()
    if out.exists():
        raise InputError("exists already", file=out, remedy="give --out another name")
    partial = _open_run(out, examples, settings, folds, repeats)

    paths = [one.path for one in examples.sets]
    tables: list[pa.Table] = []
    without: dict[str, list[pa.Table]] = {"image": [], "metadata": []}
    pieces: list[dict[str, Any]] = []
    table_of_folds: list[dict[str, Any]] = []
    for repeat in range(repeats):
        seed = settings.train.seed + repeat
        fold_of = folds_of_groups(groups, folds, seed)
        for fold in range(folds):
            name = _name(fold, repeat, repeats)
            rows = labelled[fold_of == fold]
            held_out = np.unique(groups[fold_of == fold].astype(str)).tolist()

            def trained(
                folder: Path, rows: np.ndarray = rows, **update: Any
            ) -> tuple[Ensemble, Settings]:
                chosen = settings.model_copy(
                    update={"train": settings.train.model_copy(update=update)}
                )
                if not folder.exists():
                    train(paths, folder, chosen, on_progress=on_progress, on_event=on_event)
                judge = Ensemble.load(folder)
                if not unseen(judge, examples)[rows].all():
                    raise InternalError(f"{folder.name} was trained on groups that were held out")
                return judge, chosen

            update: dict[str, Any] = {
                "hold_out": ",".join(held_out),
                "seed": seed,
                "reasons": False,
            }
            judge, chosen = trained(partial / name, **update)
            predictions = _judged_in(
                judge, examples, rows, settings, on_progress, fold=fold, repeat=repeat
            )
            own = measure(examples, predictions, level)
            if ablate:
                pieces.append(ablation.ablation_of(judge, examples, rows, settings))
                blind, _ = trained(partial / WITHOUT / name, **update, features=())
                without["image"].append(
                    _judged_in(
                        blind, examples, rows, settings, on_progress, fold=fold, repeat=repeat
                    )
                )
                others = np.setdiff1d(labelled, rows)
                without["metadata"].append(
                    ablation.by_metadata(judge, examples, others, rows, level, chosen, predictions)
                )
            table_of_folds.append(
                {"fold": fold + 1, "repeat": repeat + 1, "groups": held_out, **plain(own)}
            )
            tables.append(predictions)
            on_event(Event("fold.finished", {"fold": name, **plain(own)}))

    predictions = pa.concat_tables(tables).sort_by([("repeat", "ascending"), ("row", "ascending")])
    numbers = measure(examples, predictions, level, on_event)
    numbers["n"] = len(labelled)
    numbers["left_out"] = examples.n - len(labelled)
    bound = settings.train.operating_point.bound
    numbers["bound_held"] = bound_held(examples, predictions, level, bound)
    numbers["folds"] = table_of_folds
    numbers["spread_over_folds"] = {
        name: _spread_over_folds([fold[name] for fold in table_of_folds]) for name in OF_A_FOLD
    }
    if ablate:
        retrained = {"both": tables, **without}
        numbers["ablation"] = {
            "retrained": {
                name: ablation.summary(measure(examples, pa.concat_tables(parts), level))
                for name, parts in retrained.items()
            },
            "permutation": ablation.together([piece["permutation"] for piece in pieces]),
        }
    write(partial, predictions, numbers)
    write_page(
        partial / REPORT,
        examples.sets,
        examples,
        predictions,
        numbers,
        settings,
        level=level,
        groups=len(np.unique(groups.astype(str))),
        first=partial / _name(0, 0, repeats),
        out=out,
    )
    (partial / RUN).unlink()
    partial.rename(out)
    on_event(Event("evaluation.finished", plain(numbers)))
    return numbers


def asked_of_evaluate(settings: Settings) -> Settings | None:
    """The settings of the cross-validation that ``evaluate.cross_validate`` wants; None where it is not set.

    It is understood for one release.
    """
    old = settings.evaluate
    if old.cross_validate is None:
        return None
    chosen = {"folds": old.cross_validate, "repeats": old.repeats, "ablate": old.ablate}
    section = settings.cross_validate.model_copy(update=chosen)
    return settings.model_copy(update={"cross_validate": section})


def _name(fold: int, repeat: int, repeats: int) -> str:
    """Where the ensemble of a fold lies."""
    return f"fold-{fold + 1}" if repeats == 1 else f"repeat-{repeat + 1}/fold-{fold + 1}"


def _judged_in(
    judge: Ensemble,
    examples: JoinedSets,
    rows: np.ndarray,
    settings: Settings,
    on_progress: OnProgress,
    *,
    fold: int,
    repeat: int,
) -> pa.Table:
    """`evaluate.predictions_of`, set by set; ``row`` counts through all of them."""
    tables = []
    for one, start in zip(examples.sets, examples.start.tolist(), strict=False):
        own = rows[(rows >= start) & (rows < start + one.n)] - start
        if len(own):
            table = predictions_of(judge, one, own, settings, on_progress, fold=fold, repeat=repeat)
            place = table.column_names.index("row")
            tables.append(table.set_column(place, "row", pa.array(table["row"].to_numpy() + start)))
    return pa.concat_tables(tables)


def _open_run(
    out: Path, examples: PreparedSet, settings: Settings, folds: int, repeats: int
) -> Path:
    """The folder beside ``out`` of an unfinished run of the very same cross-validation, or a new one."""
    # How many workers there are changes when things happen, not what comes out.
    trained = settings.train.model_dump(mode="json", exclude={"workers", "gpu"})
    identity = json.dumps([examples.digest, trained, folds, repeats])
    note = out.with_name(f"{out.name}.partial") / RUN
    if not (note.is_file() and note.read_text("utf-8") == identity):
        shutil.rmtree(note.parent, ignore_errors=True)
        note.parent.mkdir(parents=True)
        note.write_text(identity, "utf-8")
    return note.parent


def _level(examples: PreparedSet, settings: Settings) -> Level:
    if settings.train.split_by != "auto":
        return settings.train.split_by
    if examples.kind != "particle":
        return "project"  # a class is made of many micrographs
    return "project" if len(np.unique(examples.groups("project").astype(str))) > 1 else "micrograph"


def _enough_groups(examples: PreparedSet, groups: np.ndarray, level: Level, folds: int) -> None:
    names = sorted(set(groups))
    if len(names) < folds:
        raise SettingsError(
            f"{folds} folds are requested, and {examples.path} has labels in {len(names)} {level}s",
            remedy=f"ask for at most {len(names)} folds, or split by micrograph",
        )
    for name in names:
        if "," in name:
            raise InputError(
                f"the {level} {name!r} has a comma in its name, so it cannot be held out by name",
                file=examples.path,
                remedy="ingest it again under another name",
            )


def _spread_over_folds(values: Sequence[float | None]) -> dict[str, float | int | None]:
    spread = accuracy.spread(values)
    return {"std": spread["std"], "min": spread["min"], "max": spread["max"], "folds": len(values)}
