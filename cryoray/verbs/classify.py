"""Classify: a source to verdicts, planned and written here, judged by threads of this process or by Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from cryoray.boosting import prevalence
from cryoray.boosting.prevalence import Prevalence
from cryoray.engine import local
from cryoray.errors import InputError
from cryoray.formats.class_selection import is_model
from cryoray.formats.conversion import check_convertible
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.relion import complaint
from cryoray.formats.source import Source, find_sources, open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.models.ensemble import Ensemble
from cryoray.models.line import settled
from cryoray.models.profile import NO_PROFILE, PROFILE, Profile
from cryoray.models.registry import resolve
from cryoray.preparation.described import Described, describe
from cryoray.preparation.plan import Plan, plan
from cryoray.records import (
    KINDS,
    Event,
    Kind,
    OnEvent,
    OnProgress,
    RowCounts,
    Verdicts,
    ignore,
)
from cryoray.report.verdicts import write_page
from cryoray.settings import Settings
from cryoray.verbs.classify_volumes import classify_volumes
from cryoray.verbs.rank import (
    ClassVerdicts,
    judge_classes_of,
    with_classes,
    write_classes,
    write_selection,
)

#: What `select` keeps beside verdicts.
SELECTION = "selection.jsonl"
TABLE, QUARANTINE, CLASSES = "verdicts.parquet", "quarantine.parquet", "classes"
METRICS = "metrics.json"


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
        out: folder of the verdicts (contracts: Verdicts), with the ``profile.json`` by which they were
            reached, where the ensemble can judge within a project. Older ones there are replaced when the
            new ones are complete. Of the classes of a job there is also what RELION's Select job writes.
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
    ensemble = Ensemble.load(path, review=chosen.review, policy=chosen.policy)
    of_classes = None
    if chosen.class_ensemble is not None:
        ensemble.check_kind("particle", source)
        judge_of_classes = resolve(chosen.class_ensemble, settings.registry)
        of_classes = Ensemble.load(
            judge_of_classes, review=chosen.review, policy=_of_classes(chosen.policy)
        )
    with replacing_folder(out, "folder of verdicts", _holds_verdicts) as partial:
        sources = sources or _opened(source, kind, ensemble)
        described = [_described(each, on_event) for each in sources]
        sources = [each.source for each in described]
        classes = None
        if of_classes is not None:
            found = [judge_classes_of(each, of_classes) for each in sources]
            classes = [
                ClassVerdicts.of(
                    of_job.source,
                    settled(of_job.verdicts, of_classes, chosen.review_at_most)[0],
                )
                for of_job in found
            ]
        for given in sources if chosen.also_star else ():
            if given.format == "cs":
                check_convertible(given)
        plans = [
            plan(
                each.source,
                ensemble.preparation,
                chosen.range_mib,
                invert=each.is_dark(ensemble.preparation),
            )
            for each in described
        ]
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
        row_counts: dict[str, RowCounts] = {}
        judges = _within(plans, ensemble, chosen.profile, on_event)
        judged = _judged(plans, judges, settings, on_progress)
        for i, (name, each, verdicts) in enumerate(
            zip(_names(sources), plans, judged, strict=True)
        ):
            columns = ["score"] if chosen.score_column else []
            verdicts, judge = settled(verdicts, judges[i], chosen.review_at_most)
            if classes:
                verdicts = with_classes(verdicts, each.source, classes[i])
                columns += ["class_score"] if chosen.score_column else []
                write_classes(partial / name / CLASSES, classes[i], with_score=chosen.score_column)
            row_counts[name] = write_verdicts(
                partial / name,
                each.source,
                verdicts,
                star_columns=columns,
                also_star=chosen.also_star,
            )
            if is_model(each.source):
                of_job = ClassVerdicts.of(each.source, verdicts)
                write_selection(partial / name, of_job, with_score=chosen.score_column)
            if judge.profile is not None:
                judge.profile.save(partial / name / PROFILE)
            counts = verdicts.verdict_counts()
            share = _share_of_keeps(verdicts, ensemble)
            counts["review_kept"] = verdicts.review_kept()
            _write_metrics(
                partial / name / METRICS, {**asdict(row_counts[name]), **counts}, share, judge
            )
            seconds = time.monotonic() - began
            write_page(
                partial / name,
                each.source,
                verdicts,
                judge,
                row_counts[name],
                chosen,
                seconds,
                share,
                each.invert,
            )
            on_event(
                Event(
                    "classify.done",
                    {
                        "out": str(out / name),
                        "ensemble": ensemble.digest,
                        "policy": judge.policy,
                        "threshold": judge.threshold,
                        "row_counts": str(row_counts[name]),
                        **asdict(row_counts[name]),
                        **counts,
                        "prevalence": share.estimate if share else None,
                        "seconds": round(seconds, 1),
                    },
                )
            )
    for name, counted in row_counts.items():
        counted.check(max_quarantined=chosen.max_quarantined, listed_in=out / name / QUARANTINE)
    return out


def _of_classes(policy: str | None) -> str | None:
    """The policy of the judge of classes beside particles: a line that a person gave is the particles'."""
    return None if policy is None or "=" in policy else policy


def _share_of_keeps(verdicts: Verdicts, ensemble: Ensemble) -> Prevalence | None:
    """The share of images worth keeping, whatever it was in training; None of no image."""
    if not len(verdicts.score):
        return None
    return prevalence.estimate(verdicts.score, ensemble.manifest.prevalence)


def _write_metrics(
    file: Path, counts: Mapping[str, int], share: Prevalence | None, judge: Ensemble
) -> None:
    line = {"policy": judge.policy, "threshold": judge.threshold, "review_band": judge.review}
    written = {**counts, **line, "prevalence": share.as_json() if share else None}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _described(source: Source, on_event: OnEvent) -> Described:
    """A stack as the STAR file beside it describes it, so that either of the two gives the same verdicts."""
    described = describe(source)
    for file, why in described.found.unused:
        on_event(Event("companion.unused", {"file": str(file), "because": why}))
    if described.used is not None:
        star = str(described.used.star.path)
        on_event(Event("companion.used", {"stack": str(source.path), "file": star}))
    return described


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
    for made in (folder / SELECTION, *folder.glob(f"*/{SELECTION}")):
        if made.is_file():
            raise InputError(
                "is a selection that a person made on these verdicts, and it would be lost",
                file=made,
                remedy="give --out another name, or remove it",
            )
    return (folder / TABLE).is_file() or all(
        (inside / TABLE).is_file() for inside in folder.iterdir()
    )


def _within(
    plans: Sequence[Plan], ensemble: Ensemble, profile: str | None, on_event: OnEvent
) -> list[Ensemble]:
    """The judge of each plan, within its project where the ensemble can.

    Raises:
        InputError: the profile that is given cannot be read.
        EnsembleError: it is of another ensemble.
    """
    if not ensemble.has_context or profile == NO_PROFILE:
        return [ensemble] * len(plans)
    if profile is not None:
        judges = [ensemble.within(Profile.load(Path(profile)))] * len(plans)
    else:
        judges = [ensemble.within(made) for made in local.profiles(plans, ensemble)]
    for each, judge in zip(plans, judges, strict=True):
        if judge.profile is None:  # nothing of the source can be read
            continue
        seen = {"source": str(each.source.path), "profile": judge.profile.digest}
        on_event(
            Event(
                "classify.profiled",
                {**seen, "familiar": judge.familiar, "images": judge.profile.images},
            )
        )
    return judges


def _judged(
    plans: Sequence[Plan], ensemble: Sequence[Ensemble], settings: Settings, on_progress: OnProgress
) -> list[Verdicts]:
    """The verdicts of each plan, by threads of this process, or by Ray where that is worth starting."""
    chosen = settings.classify
    size = sum(each.bytes for each in plans)
    if local.suffices(size, chosen.local_max_mib, settings.runtime):
        return local.judge(plans, ensemble, chosen.range_mib, on_progress)
    from cryoray.engine import pool, runtime

    runtime.connect(settings.runtime)
    return pool.judge(plans, ensemble, chosen.review, chosen.range_mib, on_progress)
