"""Classify: a source to verdicts, judged by threads of this process or, where that is worth it, by Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.engine import local
from cryoray.errors import InputError, SettingsError
from cryoray.formats import cryosparc, relion
from cryoray.formats.class_volumes import open_volumes
from cryoray.formats.conversion import check_convertible
from cryoray.formats.files import replacing_folder
from cryoray.formats.names import PROFILE, QUARANTINE_TABLE, VERDICTS_TABLE
from cryoray.formats.relion import complaint
from cryoray.formats.source import Source
from cryoray.formats.verdicts import inputs_of
from cryoray.models.class_verdicts import ClassVerdicts, judge_classes_of, with_classes
from cryoray.models.class_volumes import judge_volumes
from cryoray.models.decide import decide_source
from cryoray.models.ensemble import TELLING, Ensemble
from cryoray.models.profile import NO_PROFILE, Profile
from cryoray.models.registry import resolve
from cryoray.policies import parsed
from cryoray.preparation.described import Described, describe
from cryoray.preparation.plan import Plan, plan
from cryoray.preparation.reader import by_reason, explained
from cryoray.records import Event, OnEvent, OnProgress, RowCounts, Verdicts, ignore
from cryoray.settings import Settings
from cryoray.verbs.opening import folder_names, open_any_kind, open_sources
from cryoray.verbs.verdict_files import (
    Decided,
    check_same_verdicts,
    holds_verdicts,
    write_decided,
)


def classify(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    instead_of: Path | None = None,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> Path:
    """Judge every image, or 3D class, of a source: keep, discard or review.

    Args:
        source: a STAR file, a stack, or a folder of those. Where it is several sources, each has its
            own folder in ``out``. Of kind class3d, what `open_volumes` takes.
        out: folder of the verdicts (docs/reference/file-formats.md), with the ``profile.json`` by which they
            were reached, where the ensemble can judge within a project. Older ones there on the same source
            are replaced when the new ones are complete; others with
            ``settings.classify.replace`` alone. Of the classes of a job there is also what RELION's Select
            job writes; of 3D classes, the particles of those kept in ``particles.star``, and of the others
            beside it.
        settings: ``runtime``, ``registry`` and ``classify`` are used. Where no ensemble is named, the
            default of the kind judges (`models.registry.default`).
        instead_of: folder whose verdicts these will replace; None: ``out``.
        on_progress: as images are judged, or 3D classes are looked at.
        on_event: ``classify.planned``, ``classify.quarantined`` with counts by reason where rows could not
            be read, and ``classify.done`` for each source.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: nothing can be read, or ``out`` holds something else, or verdicts that would be lost.
        EnsembleError: there is no such ensemble, or it judges images of another kind.
        QuarantineError: too many rows could not be read; verdicts and their list are written, unless verdicts
            on more rows of the source would be lost.
        SettingsError: no Ray; or a policy is given for 3D classes, or a profile where none is used.
    """
    began = time.monotonic()
    source, out, chosen = Path(source).absolute(), Path(out).absolute(), settings.classify
    decide = _volumes if chosen.kind == "class3d" else _images
    row_counts: dict[str, RowCounts] = {}
    unread: dict[str, tuple[str, str]] = {}

    def check(name: str, listed_in: Path, left: str = "") -> None:
        why, remedy = unread.get(name, ("", ""))
        row_counts[name].check(
            max_quarantined=chosen.max_quarantined,
            listed_in=listed_in,
            why=why,
            remedy=f"{remedy}{left}",
        )

    with replacing_folder(out, "folder of verdicts", holds_verdicts) as partial:
        for name, decided in decide(source, instead_of or out, settings, on_progress, on_event):
            seconds = round(time.monotonic() - began, 1)
            row_counts[name], done = write_decided(partial / name, decided, chosen, seconds)
            if reasons := [why for _, why in sorted(decided.verdicts.quarantined)]:
                unread[name] = explained(reasons, decided.source)
                counts = {
                    "source": str(decided.source.path),
                    "rows": len(reasons),
                    **by_reason(reasons),
                }
                on_event(Event("classify.quarantined", counts))
            on_event(Event("classify.done", {"out": str(out / name), **done, "seconds": seconds}))

        for name, counted in row_counts.items():
            before = _judged_before((instead_of or out) / name / VERDICTS_TABLE)
            if counted.rows_out < before and counted.quarantined and not chosen.replace:
                # The images may be on a disk that is away: what was judged before is worth more.
                check(name, source, f"; the verdicts in {out / name} are left as they were")
                raise InputError(
                    f"holds verdicts on {before:,} images of this source, of which only "
                    f"{counted.rows_out:,} can be read now",
                    file=out / name,
                    remedy="bring back what is missing, choose another folder, or add --replace",
                )
    for name in row_counts:
        check(name, out / name / QUARANTINE_TABLE)
    return out


def _judged_before(table: Path) -> int:
    """How many rows an older table of verdicts has; 0 where there is none."""
    try:
        return int(pq.read_metadata(table).num_rows)
    except (OSError, pa.ArrowException):
        return 0


def _images(
    path: Path, out: Path, settings: Settings, on_progress: OnProgress, on_event: OnEvent
) -> Iterator[tuple[str, Decided]]:
    """The sources under a path, opened, planned, judged and decided, each with the name of its folder."""
    chosen = settings.classify
    kind = None if chosen.kind == "class3d" else chosen.kind
    sources: Sequence[Source] = ()
    if chosen.ensemble is None and kind is None:
        kind, sources = open_any_kind(path)
    ensemble = Ensemble.load(
        resolve(chosen.ensemble, settings.registry, kind or "particle"),
        review=chosen.review,
        policy=chosen.policy,
    )
    of_classes = None
    if chosen.class_ensemble is not None:
        ensemble.check_kind("particle", path)
        of_classes = Ensemble.load(
            resolve(chosen.class_ensemble, settings.registry),
            review=chosen.review,
            policy=_of_classes(chosen.policy),
        )
    sources = sources or open_sources(path, kind, ensemble)
    check_same_verdicts(out, sources, classes=of_classes is not None, replace=chosen.replace)
    described = [_described(each, on_event) for each in sources]
    classes: list[ClassVerdicts | None] = [None] * len(described)
    if of_classes is not None:
        classes = [
            _classes_of(each.source, of_classes, chosen.review_at_most) for each in described
        ]
    for each in described if chosen.also_star else ():
        if each.source.format == "cs":
            check_convertible(each.source)
    plans = [_planned(each, ensemble, chosen.range_mib, on_event) for each in described]
    judges = _with_profiles(plans, ensemble, chosen.profile, on_event)
    judged = _judged(plans, judges, settings, on_progress)
    names = folder_names([each.source for each in plans])
    for name, planned, verdicts, judge, of_job in zip(
        names, plans, judged, judges, classes, strict=True
    ):
        verdicts, judge = decide_source(verdicts, judge, chosen.review_at_most)
        if of_job is not None:
            verdicts = with_classes(verdicts, planned.source, of_job)
        yield name, Decided(planned.source, verdicts, judge, planned.invert, of_job)


def _volumes(
    path: Path, out: Path, settings: Settings, on_progress: OnProgress, on_event: OnEvent
) -> Iterator[tuple[str, Decided]]:
    """The 3D classes of a job, likewise; they are few, and judged in this process."""
    chosen = settings.classify
    if chosen.policy is not None:
        raise SettingsError(
            f"no policy ({chosen.policy}) applies to 3D classes: they are compared with the best of "
            "their job",
            remedy="leave out --policy",
        )
    if chosen.profile is not None and chosen.profile != NO_PROFILE:
        raise _no_profile(Path(chosen.profile), "what judges 3D classes")
    named = resolve(chosen.ensemble, settings.registry, "class3d")
    ensemble = Ensemble.load(named, review=chosen.review)
    classes = open_volumes(path)
    check_same_verdicts(out, [classes.source], replace=chosen.replace)
    volumes = judge_volumes(classes, ensemble, on_progress)
    source = volumes.classes.source
    yield "", Decided(source, volumes.verdicts, volumes.ensemble, volumes=volumes)


def _classes_of(particles: Source, ensemble: Ensemble, review_at_most: float) -> ClassVerdicts:
    """What is decided of the 2D classes of the job that these particles are of."""
    of_job = judge_classes_of(particles, ensemble)
    verdicts, _ = decide_source(of_job.verdicts, ensemble, review_at_most)
    return ClassVerdicts.of(of_job.source, verdicts)


def _of_classes(policy: str | None) -> str | None:
    """The policy of the judge of classes beside particles: a line that a person gave is the particles'."""
    return None if policy is None or parsed(policy).number is not None else policy


def _described(source: Source, on_event: OnEvent) -> Described:
    """A stack as the STAR file beside it describes it, so that either of the two gives the same verdicts."""
    described = describe(source)
    for file, why in described.found.unused:
        on_event(Event("companion.unused", {"file": str(file), "because": why}))
    if described.used is not None:
        star = str(described.used.star.path)
        on_event(Event("companion.used", {"stack": str(source.path), "file": star}))
    return described


def _planned(described: Described, ensemble: Ensemble, range_mib: int, on_event: OnEvent) -> Plan:
    dark = described.is_dark(ensemble.preparation)
    planned = plan(described.source, ensemble.preparation, range_mib, invert=dark)
    words = complaint(planned.source)
    on_event(
        Event(
            "classify.planned",
            {
                "source": str(planned.source.path),
                "rows": len(planned.source),
                "ranges": len(planned.ranges),
                "quarantined": len(planned.quarantined),
                "contrast": "dark" if planned.invert else "bright",
                **({"RELION would report": words} if words else {}),
            },
        )
    )
    return planned


def _with_profiles(
    plans: Sequence[Plan], ensemble: Ensemble, profile: str | None, on_event: OnEvent
) -> list[Ensemble]:
    """The judge of each plan (`engine.local.with_profiles`), with an event where it is of a project.

    Raises:
        SettingsError: a profile is given, and the ensemble knows none.
    """
    given = None if profile is None or profile == NO_PROFILE else Path(profile)
    if given is not None and given.is_dir():
        given /= PROFILE
    if given is not None and not ensemble.takes_profile:
        raise _no_profile(given, f"the ensemble {ensemble.path}")
    judges = local.with_profiles(plans, ensemble, profile)
    own: dict[int, Profile | None] = {}
    if given is not None:
        # Sources of few images cannot be told from others, and it is for them that profiles are given.
        large = [at for at, each in enumerate(plans) if len(each.source) >= TELLING]
        own = dict(zip(large, local.profiles([plans[at] for at in large], ensemble), strict=True))
    for at, (each, judge) in enumerate(zip(plans, judges, strict=True)):
        if judge.profile is None:  # it knows none, or nothing of the source can be read
            continue
        about = {
            "source": str(each.source.path),
            "profile": judge.profile.digest,
            "familiar": judge.familiar,
            "images": judge.profile.images,
        }
        if given is not None:
            about["given"] = str(given)
            seen = own.get(at)
            about["unlike"] = seen is not None and ensemble.unlike(judge.profile, seen)
            about["of another project"] = _of_another(given, each.source)
        on_event(Event("classify.profiled", about))
    return judges


def _no_profile(given: Path, judge: str) -> SettingsError:
    return SettingsError(
        f"the profile {given} is of no use: {judge} judges without one",
        remedy="leave out --profile",
    )


def _of_another(profile: Path, source: Source) -> str | None:
    """The source of another project that a profile was measured on, as the verdicts beside it name it.

    What lies in the same project's folder, or in one folder, is of one project.
    """
    named = inputs_of(profile.with_name(VERDICTS_TABLE)).get("source", ())
    for one in named:
        here, there = (_project(path) for path in (source.path, Path(one)))
        if not (here.is_relative_to(there) or there.is_relative_to(here)):
            return one
    return None


def _project(source: Path) -> Path:
    """The folder of the project that a source is in."""
    folder = Path(os.path.realpath(source)).parent
    return relion.project(folder) or cryosparc.project(folder) or folder


def _judged(
    plans: Sequence[Plan], ensemble: Sequence[Ensemble], settings: Settings, on_progress: OnProgress
) -> list[Verdicts]:
    """The verdicts of each plan, by threads of this process, or by Ray where that is worth starting."""
    chosen = settings.classify
    size = sum(each.bytes for each in plans)
    if local.suffices(size, chosen.local_max_mib, settings.runtime):
        return local.judge_plans(plans, ensemble, chosen.range_mib, on_progress)
    from cryoray.engine import pool, runtime

    runtime.connect(settings.runtime)
    return pool.judge_plans(plans, ensemble, chosen.review, chosen.range_mib, on_progress)
