"""A source to verdicts: planned here, read, prepared and judged by Ray's workers, written here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from cryoray.boosting import prevalence
from cryoray.boosting.prevalence import Prevalence
from cryoray.engine import runtime
from cryoray.engine.datasource import RowRangeDatasource, to_rows
from cryoray.errors import InputError
from cryoray.formats.class_selection import is_model
from cryoray.formats.conversion import check_convertible
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.relion import complaint
from cryoray.formats.source import Source, find_sources, open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.models.ensemble import Ensemble, Judgement
from cryoray.models.registry import resolve
from cryoray.preparation.plan import Plan, plan
from cryoray.records import (
    KINDS,
    MEMBERS,
    VERDICTS,
    Books,
    Event,
    Kind,
    OnEvent,
    OnProgress,
    Progress,
    ignore,
)
from cryoray.report.verdicts import write_page
from cryoray.settings import PreparationSettings, Settings
from cryoray.verbs.classify_volumes import classify_volumes
from cryoray.verbs.rank import (
    ClassVerdicts,
    judge_classes_of,
    with_classes,
    write_classes,
    write_selection,
)

TABLE, QUARANTINE, CLASSES = "verdicts.parquet", "quarantine.parquet", "classes"
METRICS = "metrics.json"

#: What no image makes of a batch. ``why`` says why a row is quarantined, ``reason`` why it is discarded;
#: either is '' where it is not.
_NOTHING = {
    "row": np.empty(0, np.int64),
    **{name: np.empty(0, object) for name in ("why", "verdict", "reason")},
    **{name: np.empty(0, np.float32) for name in ("score", *MEMBERS)},
}

#: Images that an actor judges at once: small stacks are put together to this.
_TOGETHER = 1024


def classify(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> Path:
    """Judge every image of a source: keep, discard or review.

    Args:
        source: a STAR file, a stack, or a folder of those. Where it is several sources, each has its
            own folder in ``out``. Of kind class3d, see `classify_volumes`.
        out: folder of the verdicts (contracts: Verdicts). Older ones there are replaced when the new
            ones are complete. Of the classes of a job there is also what RELION's Select job writes.
        settings: ``runtime``, ``registry`` and ``classify`` are used. Where no ensemble is named, the
            default of the kind judges (`models.registry.default`).
        on_progress: as images are judged.
        on_event: ``classify.planned`` and ``classify.done`` for each source.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: nothing can be read, or ``out`` holds something else.
        EnsembleError: there is no such ensemble, or it judges images of another kind.
        QuarantineError: too many rows could not be read; verdicts and their list are written.
        SettingsError: no Ray.
    """
    if settings.classify.kind == "class3d":
        return classify_volumes(source, out, settings, on_progress=on_progress, on_event=on_event)
    began = time.monotonic()
    out, chosen = Path(out).absolute(), settings.classify
    source, kind, sources = Path(source).absolute(), settings.classify.kind, None
    if chosen.ensemble is None and kind is None:
        kind, sources = _of_any_kind(source)
    path = resolve(chosen.ensemble, settings.registry, kind or "particle")
    ensemble = Ensemble.load(path, review=chosen.review)
    of_classes = None
    if chosen.class_ensemble is not None:
        ensemble.check_kind("particle", source)
        judge_of_classes = resolve(chosen.class_ensemble, settings.registry)
        of_classes = Ensemble.load(judge_of_classes, review=chosen.review)
    preparation = ensemble.preparation.model_copy(update={"features": ensemble.features})
    with replacing_folder(out, "folder of verdicts", _holds_verdicts) as partial:
        sources = sources or _opened(source, kind, ensemble)
        classes = [judge_classes_of(each, of_classes) for each in sources] if of_classes else None
        for given in sources if chosen.also_star else ():
            if given.format == "cs":
                check_convertible(given)
        runtime.connect(settings.runtime)
        plans = [plan(each, preparation, chosen.range_mib) for each in sources]
        for each in plans:
            on_event(
                Event(
                    "classify.planned",
                    {
                        "source": str(each.source.path),
                        "rows": len(each.source),
                        "ranges": len(each.ranges),
                        "quarantined": len(each.quarantined),
                        "contrast": "dark" if each.invert else "bright",
                        **(
                            {"RELION would say": words} if (words := complaint(each.source)) else {}
                        ),
                    },
                )
            )
        books: dict[str, Books] = {}
        judged = _judged(plans, (path, chosen.review), preparation, chosen.range_mib, on_progress)
        for i, (name, each, fate) in enumerate(zip(_names(sources), plans, judged, strict=True)):
            table, quarantined = fate
            columns = ["score"] if chosen.score_column else []
            if classes:
                table = with_classes(table, each.source, classes[i])
                columns += ["class_score"] if chosen.score_column else []
                write_classes(partial / name / CLASSES, classes[i], with_score=chosen.score_column)
            books[name] = write_verdicts(
                partial / name,
                each.source,
                table,
                quarantined,
                star_columns=columns,
                also_star=chosen.also_star,
            )
            if is_model(each.source):
                said = ClassVerdicts.of(each.source, table, quarantined)
                write_selection(partial / name, said, with_score=chosen.score_column)
            verdicts = table["verdict"].to_pylist()
            counts = {str(verdict): verdicts.count(verdict) for verdict in VERDICTS}
            share = _share_of_keeps(table, ensemble)
            _write_metrics(partial / name / METRICS, {**asdict(books[name]), **counts}, share)
            seconds = time.monotonic() - began
            write_page(
                partial / name, each.source, table, ensemble, books[name], chosen, seconds, share
            )
            on_event(
                Event(
                    "classify.done",
                    {
                        "out": str(out / name),
                        "ensemble": ensemble.digest,
                        "books": str(books[name]),
                        **asdict(books[name]),
                        **counts,
                        "prevalence": share.estimate if share else None,
                        "seconds": round(seconds, 1),
                    },
                )
            )
    for name, book in books.items():
        book.check(max_quarantined=chosen.max_quarantined, listed_in=out / name / QUARANTINE)
    return out


def _share_of_keeps(table: pa.Table, ensemble: Ensemble) -> Prevalence | None:
    """The share of images worth keeping, whatever it was in training; None of no image."""
    if not len(table):
        return None
    return prevalence.estimate(table["score"].to_numpy(), ensemble.manifest.prevalence)


def _write_metrics(file: Path, counts: Mapping[str, int], share: Prevalence | None) -> None:
    said = {**counts, "prevalence": share.as_json() if share else None}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _opened(path: Path, kind: Kind | None, ensemble: Ensemble) -> list[Source]:
    """The sources under a path, of the kind that the ensemble judges.

    Raises:
        InputError: there are none of any kind.
        EnsembleError: there are some, of another kind.
    """
    ensemble.check_kind(kind or ensemble.kind, path)
    try:
        return [open_source(found, ensemble.kind) for found in find_sources(path, ensemble.kind)]
    except InputError:
        for other in KINDS:
            if other != ensemble.kind and _is_of(path, other):
                ensemble.check_kind(other, path)
        raise


def _of_any_kind(path: Path) -> tuple[Kind, list[Source]]:
    """What is judged where neither ensemble nor kind is named: particles, where there are any.

    Raises:
        InputError: there are no sources of any kind; it says why there are none of particles.
    """
    complaints = []
    for kind in KINDS:
        try:
            return kind, [open_source(found, kind) for found in find_sources(path, kind)]
        except InputError as error:
            complaints.append(error)
    raise complaints[0]


def _is_of(path: Path, kind: Kind) -> bool:
    try:
        return bool([open_source(found, kind) for found in find_sources(path, kind)])
    except InputError:
        return False


def _names(sources: Sequence[Source]) -> list[str]:
    """The folder of each source's verdicts in OUT: OUT itself where there is one source."""
    if len(sources) == 1:
        return [""]
    names = [source.name for source in sources]
    names = [
        name if names.count(name) == 1 else f"{name}-{source.path.stem}"
        for name, source in zip(names, sources, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)
    ]


def _holds_verdicts(folder: Path) -> bool:
    return (folder / TABLE).is_file() or all(
        (inside / TABLE).is_file() for inside in folder.iterdir()
    )


class _Judge:
    """The actor that holds an ensemble: prepared images in, scores out.

    Args:
        path: the ensemble's folder.
        review: False: it leaves nothing under review.
    """

    def __init__(self, path: Path, review: bool) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ensemble = Ensemble.load(path, review=review).to(device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of `RowRangeDatasource` to those of `_NOTHING`."""
        prepared = to_rows(batch)
        said = self.ensemble.judge(prepared.images, prepared.features)
        bad = len(prepared.quarantined)
        nothing = np.full(bad, np.nan, np.float32)
        return {
            "row": np.append(prepared.rows, [row for row, _ in prepared.quarantined]).astype(
                np.int64
            ),
            "why": np.array(
                [""] * len(prepared.rows) + [why for _, why in prepared.quarantined], np.str_
            ),
            "verdict": np.append(said.verdict, [""] * bad).astype(np.str_),
            "reason": np.array([one or "" for one in said.reason] + [""] * bad, np.str_),
            **{
                name: np.append(getattr(said, name), nothing).astype(np.float32)
                for name in ("score", *MEMBERS)
            },
        }


def _judged(
    plans: Sequence[Plan],
    judge: tuple[Path, bool],
    preparation: PreparationSettings,
    range_mib: int,
    on_progress: OnProgress,
) -> Iterator[tuple[pa.Table, list[tuple[int, str]]]]:
    """For each plan the table that `write_verdicts` takes, and what was quarantined."""
    starts = np.cumsum([0, *(len(each.source) for each in plans)])
    total, done = int(starts[-1]), sum(len(each.quarantined) for each in plans)
    on_progress(Progress("judge", done, total))
    batches = [_NOTHING]
    for batch in _batches(plans, starts, judge, preparation, range_mib):
        batches.append(batch)
        done += len(batch["row"])
        on_progress(Progress("judge", done, total))
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in _NOTHING}
    for each, start, end in zip(plans, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        mine = (columns["row"] >= start) & (columns["row"] < end)
        yield _fate(each, {name: column[mine] for name, column in columns.items()}, start)


def _batches(
    plans: Sequence[Plan],
    starts: np.ndarray,
    judge: tuple[Path, bool],
    preparation: PreparationSettings,
    range_mib: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Run one Ray data set over the ranges of all plans; rows are numbered on from plan to plan."""
    ranges = [
        replace(part, rows=part.rows + start)
        for each, start in zip(plans, starts.tolist(), strict=False)
        for part in each.ranges
    ]
    if not ranges:
        return
    datasource = RowRangeDatasource(ranges, preparation, range_mib)
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    # Reading costs as much as judging, and a pool that takes all CPUs would wait for ever.
    most = gpus or max(1, int(resources["CPU"]) // 2)
    dataset = ray.data.read_datasource(datasource, override_num_blocks=len(datasource)).map_batches(
        _Judge,
        fn_constructor_args=judge,
        batch_size=_TOGETHER,
        compute=ActorPoolStrategy(min_size=1, max_size=min(most, len(ranges))),
        num_cpus=0.5,
        num_gpus=1 if gpus else 0,
    )
    dataset.set_name(f"classify {plans[0].source.name}")
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def _fate(
    each: Plan, columns: dict[str, np.ndarray], start: int
) -> tuple[pa.Table, list[tuple[int, str]]]:
    rows, good = columns["row"] - start, columns["why"] == ""
    reason = np.array([one or None for one in columns["reason"][good]], object)
    plain = {name: columns[name][good] for name in ("verdict", "score", *MEMBERS)}
    said = Judgement(**plain, reason=reason)
    table = said.table(each.source.images[rows[good]]).append_column("row", pa.array(rows[good]))
    bad = zip(rows[~good].tolist(), columns["why"][~good].tolist(), strict=True)
    return table, [*each.quarantined, *bad]
