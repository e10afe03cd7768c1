"""What an ensemble is worth on groups it has not seen: judged by Ray Data, measured, shown."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray import report
from cryoray.boosting import prevalence
from cryoray.boosting.filtering import folds_of_groups
from cryoray.engine import local
from cryoray.errors import EnsembleError, InputError, InternalError, SelectionError, SettingsError
from cryoray.formats.files import replacing, replacing_folder
from cryoray.metrics import accuracy
from cryoray.models.ensemble import Ensemble, training_record
from cryoray.models.registry import resolve
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.views import views
from cryoray.records import (
    MEMBERS,
    REASON_WORDS,
    REASONS,
    Event,
    OnEvent,
    OnProgress,
    ignore,
)
from cryoray.settings import Settings
from cryoray.verbs import ablation

#: Settings that decide what a prepared image looks like. Diameter and contrast are the source's own:
#: they differ between projects so that prepared images do not.
SAME_LOOK = ("box", "window", "clip")

#: Images in each strip of the gallery.
SHOWN = 24

METRICS, PREDICTIONS, REPORT = "metrics.json", "predictions.parquet", "report.html"

#: Of which cross-validation an unfinished folder is.
RUN = "run.json"

#: Folder of a cross-validation's ensembles that were trained without metadata.
WITHOUT = "without-metadata"

#: Numbers of a fold that are tabulated, and how.
_OF_A_FOLD = ("threshold", "accuracy", "false_negative_rate", "false_positive_rate", "auroc", "ece")

Level = Literal["project", "micrograph"]


class Train(Protocol):
    """`cryoray.verbs.train.train`, handed in because floors do not import sideways."""

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
        on_progress: told how many images were judged.
        on_event: told what was left out, and the numbers.

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
    check_same_look(judge, examples)
    new = unseen(judge, examples)
    labelled = examples.labels >= 0
    if not labelled.any():
        raise _no_labels(examples)
    if not (new & labelled).any():
        raise EnsembleError(
            f"the ensemble {ensemble} was trained or calibrated in every labelled group of this set",
            file=examples.path,
            remedy="train with --hold-out, or give a set of other projects",
        )
    rows = np.flatnonzero(new & labelled)
    _both_kinds(examples, rows)
    if settings.evaluate.ablate:
        _has_metadata(judge.features, judge.path)
    left_out = {"seen": int((~new).sum()), "unlabelled": int((new & ~labelled).sum())}
    on_event(Event("evaluation.started", {"images": len(rows), **_left_out(left_out)}))
    with replacing_folder(Path(out).absolute(), "evaluation", _is_evaluation) as partial:
        predictions = _judged(judge, examples, rows, settings, on_progress)
        numbers = _measure(examples, predictions, judge.manifest.split_by, on_event)
        numbers["left_out"] = examples.n - len(rows)
        numbers["bound_held"] = _held(examples, predictions, judge.manifest.split_by, _bound(judge))
        numbers["prevalence"] = _prevalence(judge, predictions)
        numbers |= _reasons(examples, predictions)
        if settings.evaluate.ablate:
            numbers["ablation"] = _ablation(judge, examples, rows, settings)
        _write(partial, predictions, numbers)
        record: Mapping[str, Any] = training_record(Path(ensemble))
        lead = (
            f"{len(rows):,} labelled {_things(examples)} of {_groups(examples, rows, judge)} in which"
            " the ensemble was neither trained nor calibrated were judged, and its forced decisions"
            f" compared with the labels. Left out: {left_out['seen']:,} images of groups that it knows,"
            f" {left_out['unlabelled']:,} without a label."
        )
        report.render(
            partial / REPORT,
            f"Evaluation of ensemble {judge.digest[:10]}",
            [
                report.summary_section(
                    lead,
                    {"ensemble": ensemble, "prepared set": examples.path},
                    _came_out(numbers),
                    _headline(numbers),
                ),
                report.result_section(
                    numbers, f"{_promise(judge)} {_share(numbers['prevalence'])}"
                ),
                _kept_promise(numbers),
                *_ablated(numbers),
                *_shown(examples, predictions, numbers, _bound(judge), judge),
                *_named(numbers),
                *_training(record),
                report.provenance_section(
                    f"cryoray evaluate {ensemble} {prepared} --out {out}",
                    [judge.preparation],
                    {"ensemble": judge.digest, "prepared set": examples.digest},
                ),
            ],
        )
    on_event(Event("evaluation.finished", _plain(numbers)))
    return numbers


def cross_validate(
    prepared: Path,
    out: Path,
    settings: Settings,
    *,
    train: Train,
    folds: int,
    repeats: int = 1,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Train anew for each fold of groups and judge the fold, so that each image is judged once.

    Every fold has its own ensemble with its own threshold; decisions are made with that. Groups are
    projects, or micrographs where there is one project (``settings.train.split_by`` may say which).
    A run that was killed goes on where it stopped when it is called again with the same set,
    settings and ``out``: ensembles that are finished are not trained again.

    Args:
        prepared: a prepared set with labels.
        out: folder of the pooled numbers and the ensembles, `fold-1` …; must not exist.
        settings: of training; ``settings.train.hold_out`` is each fold's groups.
        train: `cryoray.verbs.train.train`.
        folds: how many.
        repeats: cross-validations, each of another seed.
        on_progress: told of training and judging.
        on_event: told when a fold is done.

    Returns:
        what `metrics.json` holds: the contract's numbers over all images (over all repeats, where
        there are several), ``bound_held``, ``folds`` with each fold's own, their ``spread_over_folds``,
        and, where ``settings.evaluate.ablate``, ``ablation``: each fold is then also trained without
        metadata, and without images.

    Raises:
        SelectionError: labels are missing or of one kind only.
        SettingsError: there are fewer groups than folds.
        InputError: ``out`` exists.
    """
    examples = PreparedSet.open(prepared)
    labelled = np.flatnonzero(examples.labels >= 0)
    if not len(labelled):
        raise _no_labels(examples)
    _both_kinds(examples, labelled)
    level = _level(examples, settings)
    groups = examples.groups(level)[labelled]
    _enough_groups(examples, groups, level, folds)
    ablate = settings.evaluate.ablate
    if ablate:
        _has_metadata(
            examples.features if settings.train.features is None else settings.train.features
        )
    out = Path(out).absolute()
    if out.exists():
        raise InputError("exists already", file=out, remedy="give --out another name")
    partial = _open_run(out, examples, settings, folds, repeats)
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
                    train(
                        [examples.path], folder, chosen, on_progress=on_progress, on_event=on_event
                    )
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
            predictions = _judged(
                judge, examples, rows, settings, on_progress, fold=fold, repeat=repeat
            )
            own = _measure(examples, predictions, level)
            if ablate:
                pieces.append(_ablation(judge, examples, rows, settings))
                blind, _ = trained(partial / WITHOUT / name, **update, features=())
                without["image"].append(
                    _judged(blind, examples, rows, settings, on_progress, fold=fold, repeat=repeat)
                )
                others = np.setdiff1d(labelled, rows)
                without["metadata"].append(
                    _by_metadata(judge, examples, others, rows, level, chosen, predictions)
                )
            table_of_folds.append(
                {"fold": fold + 1, "repeat": repeat + 1, "groups": held_out, **_plain(own)}
            )
            tables.append(predictions)
            on_event(Event("fold.finished", {"fold": name, **_plain(own)}))

    predictions = pa.concat_tables(tables).sort_by([("repeat", "ascending"), ("row", "ascending")])
    numbers = _measure(examples, predictions, level, on_event)
    numbers["n"] = len(labelled)
    numbers["left_out"] = examples.n - len(labelled)
    bound = settings.train.operating_point.bound
    numbers["bound_held"] = _held(examples, predictions, level, bound)
    numbers["folds"] = table_of_folds
    numbers["spread_over_folds"] = {
        name: _spread_over_folds([fold[name] for fold in table_of_folds]) for name in _OF_A_FOLD
    }
    if ablate:
        retrained = {"both": tables, **without}
        numbers["ablation"] = {
            "retrained": {
                name: ablation.summary(_measure(examples, pa.concat_tables(said), level))
                for name, said in retrained.items()
            },
            "permutation": ablation.together([piece["permutation"] for piece in pieces]),
        }
    _write(partial, predictions, numbers)
    again = f", {repeats} times with other seeds" if repeats > 1 else ""
    lead = (
        f"{len(labelled):,} labelled {_things(examples)} of {len(np.unique(groups.astype(str)))}"
        f" {level}s, in {folds} folds of {level}s{again}. Each fold was judged by an ensemble that was"
        f" trained and calibrated on the other folds alone, at that ensemble's own threshold."
        f" Left out: {numbers['left_out']:,} images without a label."
    )
    report.render(
        partial / REPORT,
        f"Cross-validation over {level}s",
        [
            report.summary_section(
                lead, {"prepared set": examples.path}, _came_out(numbers), _headline(numbers)
            ),
            report.result_section(numbers),
            _kept_promise(numbers),
            *_ablated(numbers),
            _folds_section(table_of_folds, numbers["spread_over_folds"]),
            *_shown(examples, predictions, numbers, bound, None),
            *_training(training_record(partial / _name(0, 0, repeats))),
            report.provenance_section(
                f"cryoray evaluate --cross-validate {folds} --repeats {repeats} {prepared} --out {out}",
                [settings.train],
                {"prepared set": examples.digest},
            ),
        ],
    )
    (partial / RUN).unlink()
    partial.rename(out)
    on_event(Event("evaluation.finished", _plain(numbers)))
    return numbers


def measure(
    ensemble: str | Path,
    prepared: Path,
    out: Path,
    settings: Settings,
    on_progress: OnProgress,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Evaluate the ensemble, or cross-validate where the settings say so, which trains anew.

    Returns:
        what ``metrics.json`` holds.
    """
    from cryoray.verbs.train import train

    if settings.evaluate.cross_validate is None:
        judge = resolve(ensemble, settings.registry)
        return evaluate(judge, prepared, out, settings, on_progress=on_progress, on_event=on_event)
    return cross_validate(
        prepared,
        out,
        settings,
        train=train,
        folds=settings.evaluate.cross_validate,
        repeats=settings.evaluate.repeats,
        on_progress=on_progress,
        on_event=on_event,
    )


def _name(fold: int, repeat: int, repeats: int) -> str:
    """Where the ensemble of a fold lies."""
    return f"fold-{fold + 1}" if repeats == 1 else f"repeat-{repeat + 1}/fold-{fold + 1}"


def unseen(ensemble: Ensemble, examples: PreparedSet) -> np.ndarray:
    """Where a set holds images of groups that the ensemble does not know: bool [n]."""
    manifest = ensemble.manifest
    known = {*manifest.training_groups, *manifest.calibration_groups}
    groups = examples.groups(manifest.split_by)
    return np.array([group not in known for group in groups], bool)


def check_same_look(ensemble: Ensemble, examples: PreparedSet) -> None:
    """Refuse images of another kind, or prepared in another way than the ensemble's.

    Raises:
        EnsembleError: naming what differs.
    """
    ensemble.check_kind(examples.kind, examples.path)
    for name in SAME_LOOK:
        theirs, ours = getattr(examples.settings, name), getattr(ensemble.preparation, name)
        if theirs != ours:
            raise EnsembleError(
                f"its images were prepared with {name} {theirs}, those of the ensemble"
                f" {ensemble.path} with {name} {ours}",
                file=examples.path,
                remedy=f"ingest the source again with {name} {ours}",
            )


def _judged(
    judge: Ensemble,
    examples: PreparedSet,
    rows: np.ndarray,
    settings: Settings,
    on_progress: OnProgress,
    *,
    fold: int = 0,
    repeat: int = 0,
) -> pa.Table:
    """Judge rows (int64 [n], ascending) of a set: `predictions.parquet`; d3 is asked everywhere."""
    size = len(rows) * examples.settings.box**2 * 4
    if local.suffices(size, settings.evaluate.local_max_mib, settings.runtime):
        said = local.judge_examples(examples, rows, judge, on_progress, everyone=True)
    else:
        from cryoray.engine import pool, runtime

        runtime.connect(settings.runtime)
        said = pool.judge_examples(examples, rows, judge, on_progress, everyone=True)
    if not np.array_equal(said.rows, rows):
        raise InternalError(f"{len(rows):,} images went to the judges and {len(said):,} came back")
    n, named = len(rows), examples.table.take(rows)
    return pa.table(
        {
            **{name: named[name] for name in ("image", "project", "micrograph", "label")},
            **{name: said.judged[name] for name in ("row", "score", "verdict", *MEMBERS, "reason")},
            "threshold": np.full(n, judge.threshold, np.float32),
            "fold": np.full(n, fold, np.int32),
            "repeat": np.full(n, repeat, np.int32),
        }
    )


def _by_metadata(
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
    said, threshold = ablation.metadata_alone(
        features[others],
        examples.labels[others],
        {name: examples.groups(name)[others] for name in get_args(Level)},
        examples.groups(level)[others],
        settings.train,
    )
    n = len(rows)
    alone = {"score": said(features[rows]), "threshold": np.full(n, threshold, np.float32)}
    for name, values in {**alone, "verdict": [""] * n}.items():
        column = pa.array(values)
        predictions = predictions.set_column(predictions.column_names.index(name), name, column)
    return predictions


def _ablation(
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


def _measure(
    examples: PreparedSet, predictions: pa.Table, level: Level, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """The contract's numbers of a table of predictions; sources that cannot say a view are told of."""
    rows = predictions["row"].to_numpy()
    bins, complaints = views(examples, rows)
    for complaint in complaints:
        on_event(Event("views.unknown", {"because": complaint}))
    particles = None
    if "defocus" in examples.features:
        defocus = examples.feature_matrix(("defocus",))[rows, 0]
        if np.isfinite(defocus).any():
            bins["defocus"] = accuracy.quantile_bins(defocus, "µm")
    if examples.kind != "particle":
        # RELION gives a class its share of the job's particles; the feature is its logarithm
        share = np.exp(examples.feature_matrix(("class_distribution",))[rows, 0])
        particles = np.nan_to_num(share)
    return accuracy.metrics(
        predictions["label"].to_numpy(),
        predictions["score"].to_numpy(),
        threshold=predictions["threshold"].to_numpy(),
        review=predictions["verdict"].to_numpy() == "review",
        groups=examples.groups(level)[rows],
        particles=particles,
        views=bins,
    )


def _held(
    examples: PreparedSet, predictions: pa.Table, level: Level, bound: float
) -> dict[str, object]:
    kept = predictions["score"].to_numpy() >= predictions["threshold"].to_numpy()
    return accuracy.bound_held(
        predictions["label"].to_numpy(),
        kept,
        examples.groups(level)[predictions["row"].to_numpy()],
        predictions["repeat"].to_numpy(),
        bound,
    )


def _prevalence(judge: Ensemble, predictions: pa.Table) -> dict[str, float]:
    """The share of keeps as it would be estimated without labels, beside what the labels say."""
    said = prevalence.estimate(predictions["score"].to_numpy(), judge.manifest.prevalence)
    return {**said.as_json(), "labelled": float(np.mean(predictions["label"].to_numpy()))}


def _share(said: Mapping[str, float]) -> str:
    return (
        f"Of these images {report.percent(said['labelled'], 0)} are good; from the scores alone the estimate"
        f" would be {report.percent(said['estimate'], 0)} (in training it was"
        f" {report.percent(said['training'], 0)})."
    )


def _kept_promise(numbers: Mapping[str, Any]) -> report.Section:
    return report.bound_held_section(
        numbers["bound_held"], numbers["review"], numbers["n"] * numbers["bound_held"]["repeats"]
    )


def _ablated(numbers: Mapping[str, Any]) -> list[report.Section]:
    return [report.ablation_section(numbers["ablation"])] if "ablation" in numbers else []


def _reasons(examples: PreparedSet, predictions: pa.Table) -> dict[str, Any]:
    """Which reason was named for discards whose true one the set knows: counts, by truth and by name."""
    true = examples.reasons[predictions["row"].to_numpy()]
    said = predictions["reason"].to_pylist()
    pairs = Counter(
        (REASONS[why], name) for why, name in zip(true, said, strict=True) if why >= 0 and name
    )
    if not pairs:
        return {}
    known = [why for why in REASONS if any(why in pair for pair in pairs)]
    right = sum(pairs[why, why] for why in known) / pairs.total()
    table = {why: {name: pairs[why, name] for name in known} for why in known}
    return {"reasons": {"n": pairs.total(), "right": right, "named": table}}


def _named(numbers: Mapping[str, Any]) -> list[report.Section]:
    if "reasons" not in numbers:
        return []
    reasons = numbers["reasons"]
    return [
        report.table_section(
            "Reasons",
            ("true reason", *(REASON_WORDS[name] for name in reasons["named"]), "images"),
            [
                (REASON_WORDS[why], *map(str, named.values()), str(sum(named.values())))
                for why, named in reasons["named"].items()
            ],
            f"What was named as the likeliest reason of {reasons['n']:,} rightly discarded images whose true"
            f" reason is known: the right one for {report.percent(reasons['right'], 0)}.",
        )
    ]


def _shown(
    examples: PreparedSet,
    predictions: pa.Table,
    numbers: Mapping[str, Any],
    bound: float,
    judge: Ensemble | None,
) -> list[report.Section]:
    """What a page shows of predictions: plots, views, galleries."""
    labels, score = predictions["label"].to_numpy(), predictions["score"].to_numpy()
    threshold = predictions["threshold"].to_numpy()
    review = predictions["verdict"].to_numpy() == "review"
    kept = score >= threshold
    random = np.random.default_rng(0).random(len(score))

    def strip(
        title: str, tone: str, where: np.ndarray, order: np.ndarray, note: str = ""
    ) -> report.Strip:
        found = np.flatnonzero(where)
        chosen = found[np.argsort(order[found], kind="stable")][:SHOWN]
        rows = predictions["row"].to_numpy()[chosen]
        names = predictions["image"].take(chosen).to_pylist()
        note = f"{len(found):,} in all. {note}".strip()
        return report.Strip(title, tone, examples.images(rows), score[chosen], names, note)

    line, band = (judge.threshold, judge.review) if judge else (None, None)
    return [
        report.confusion_section(labels, score, threshold),
        report.roc_section(labels, score, threshold, bound),
        report.calibration_section(labels, score, line, band),
        report.views_section(numbers["by_view"], bound),
        report.gallery_section(
            [
                strip("Kept", "keep", kept & ~review, random),
                strip("Discarded", "discard", ~kept & ~review, random),
                strip("Review", "review", review, random),
            ],
            lead="Drawn at random; the number is the score.",
        ),
        report.gallery_section(
            [
                strip(
                    "Good images that were lost",
                    "discard",
                    labels & ~kept,
                    score,
                    "Labelled keep, lowest scores first.",
                ),
                strip(
                    "Bad images that were let through",
                    "keep",
                    ~labels & kept,
                    -score,
                    "Labelled discard, highest scores first.",
                ),
            ],
            "Errors",
            "The most confident disagreements first: some are the label’s error, not the ensemble’s.",
        ),
    ]


def _training(record: Mapping[str, Any]) -> list[report.Section]:
    """What a page shows of a training; nothing where there is no record of it."""
    if not record:
        return []
    return [report.curves_section(record), report.bound_section(record["bound"])]


def _is_evaluation(folder: Path) -> bool:
    return (folder / METRICS).is_file()


def _folds_section(
    folds: Sequence[Mapping[str, Any]], spread: Mapping[str, Mapping[str, Any]]
) -> report.Section:
    several = any(fold["repeat"] > 1 for fold in folds)
    shares = ("accuracy", "false_negative_rate", "false_positive_rate")

    def show(values: Mapping[str, Any]) -> list[str]:
        return [
            report.percent(values[name]) if name in shares else report.decimal(values[name])
            for name in _OF_A_FOLD
        ]

    rows = [
        [
            f"{fold['repeat']}.{fold['fold']}" if several else str(fold["fold"]),
            str(len(fold["groups"])),
            f"{fold['n']:,}",
            *show(fold),
        ]
        for fold in folds
    ]
    rows.append(["st. dev.", "", "", *show({name: spread[name]["std"] for name in _OF_A_FOLD})])
    heads = ["fold", "groups", "images", "threshold", "accuracy", "FNR", "FPR", "AUROC", "ECE"]
    return report.table_section(
        "Folds", heads, rows, "FNR: good images lost. FPR: bad let through."
    )


def _spread_over_folds(values: Sequence[float | None]) -> dict[str, float | int | None]:
    spread = accuracy.spread(values)
    return {"std": spread["std"], "min": spread["min"], "max": spread["max"], "folds": len(values)}


def _write(folder: Path, predictions: pa.Table, numbers: Mapping[str, Any]) -> None:
    with replacing(folder / PREDICTIONS) as temporary:
        pq.write_table(predictions, temporary)
    with replacing(folder / METRICS) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", "utf-8")


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


def _both_kinds(examples: PreparedSet, rows: np.ndarray) -> None:
    labels = examples.labels[rows]
    if labels.min() == labels.max():
        raise SelectionError(
            f"all {len(rows):,} labels in the groups to judge say"
            f" {'keep' if labels[0] else 'discard'}, so nothing can be told apart",
            file=examples.path,
            remedy="give a set whose selection has both",
        )


def _no_labels(examples: PreparedSet) -> SelectionError:
    return SelectionError(
        "none of its images has a label",
        file=examples.path,
        remedy="ingest the source again with --selection",
    )


def _has_metadata(features: Sequence[str], path: Path | None = None) -> None:
    if not features:
        raise SettingsError(
            "there are no metadata to ablate",
            file=path,
            remedy="leave out --ablate, or use an ensemble that was trained with metadata",
        )


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
            f"{folds} folds were asked for, and {examples.path} has labels in {len(names)} {level}s",
            remedy=f"ask for at most {len(names)} folds, or split by micrograph",
        )
    for name in names:
        if "," in name:
            raise InputError(
                f"the {level} {name!r} has a comma in its name, so it cannot be held out by name",
                file=examples.path,
                remedy="ingest it again under another name",
            )


def _bound(judge: Ensemble) -> float:
    bound = judge.manifest.operating_point["bound"]
    assert isinstance(bound, float)
    return bound


def _promise(judge: Ensemble) -> str:
    point = judge.manifest.operating_point
    return (
        f"The threshold is the ensemble’s own: {point['method']}, {point['groups']:,} of them, so that"
        f" at most {report.percent(point['bound'], 0)} of good images are lost."
    )


def _things(examples: PreparedSet) -> str:
    return {"particle": "particles", "class2d": "2D classes"}[examples.kind]


def _groups(examples: PreparedSet, rows: np.ndarray, judge: Ensemble) -> str:
    level = judge.manifest.split_by
    n = len(np.unique(examples.groups(level)[rows].astype(str)))
    return f"{n:,} {level}{'' if n == 1 else 's'}"


def _headline(numbers: Mapping[str, Any]) -> dict[str, str]:
    return {
        "accuracy": report.percent(numbers["accuracy"]),
        "good images lost": report.percent(numbers["false_negative_rate"]),
        "AUROC": report.decimal(numbers["auroc"]),
        "images": f"{numbers['n']:,}",
    }


def _came_out(numbers: Mapping[str, Any]) -> dict[str, str]:
    return {
        METRICS: "the numbers of this page, for programs",
        PREDICTIONS: f"{numbers['n']:,} images with label, score and verdict",
    }


def _left_out(counts: Mapping[str, int]) -> dict[str, int]:
    return {f"left_out_{name}": count for name, count in counts.items()}


def _plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that are single numbers."""
    return {k: v for k, v in numbers.items() if v is None or isinstance(v, int | float)}
