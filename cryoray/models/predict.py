"""The one core that judges: rows of a plan to verdicts, in whichever process or replica it is called.

Engines differ in where they call it (`engine.local`, `engine.pool`, the judges of `serving`), never in what
comes out: preparation and networks give each image the same bits, whatever images are beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from cryoray.formats.rows import Source
from cryoray.models.ensemble import Embeddings, Ensemble
from cryoray.models.profile import Profile, sampled
from cryoray.models.profile import profile_of as profile_of_members
from cryoray.preparation.plan import Plan, plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import PreparedRows, RowRange, Verdicts

#: Images judged at once: those of small stacks are put together to this, and no more are held.
TOGETHER = 1024
#: Raw MiB of a range.
_RANGE_MIB = 64

#: Rows, int64 [n], and what the members see in them.
Embedded = tuple[np.ndarray, Embeddings]


def judge_source(source: Source, ensemble: Ensemble, rows: np.ndarray | None = None) -> Verdicts:
    """Judge a source, or some of its rows (int64, 0-based), here and now, by the source's own profile.

    Raises:
        EnsembleError: the ensemble judges another kind of image.
    """
    ensemble.check_kind(source.kind, source.path)
    planned = plan(source, ensemble.preparation, _RANGE_MIB, rows=rows)
    if ensemble.takes_profile and ensemble.profile is None:
        whole = planned if rows is None else plan(source, ensemble.preparation, _RANGE_MIB)
        ensemble = ensemble.with_profile(profile_plan(whole, ensemble.to()))
    judged = judge_ranges(planned.ranges, ensemble.to())
    return finished(planned.quarantined, judged, ensemble.about)


def profiled_rows(ranges: Sequence[RowRange]) -> list[RowRange]:
    """What is read of a source's ranges for its profile (`models.profile.sampled`)."""
    rows = [part.rows for part in ranges]
    wanted = sampled(np.sort(np.concatenate(rows))) if rows else np.empty(0, np.int64)
    found = [(part, np.isin(part.rows, wanted)) for part in ranges]
    return [part[np.flatnonzero(mine)] for part, mine in found if mine.any()]


def embed_prepared(part: PreparedRows, ensemble: Ensemble) -> Embedded:
    """What the members see in prepared images."""
    return part.rows, ensemble.embed(part.images, part.features)


def embed_ranges(ranges: Iterable[RowRange], ensemble: Ensemble) -> list[Embedded]:
    """Read and prepare ranges; what the members see in them, for a profile."""
    return [embed_prepared(prepare_range(part, ensemble.preparation), ensemble) for part in ranges]


def profile_of(seen: Iterable[Embedded], ensemble: str) -> Profile | None:
    """The profile of a source from some of its rows, in any order; None of no row.

    Args:
        seen: what the members see in them.
        ensemble: its digest.
    """
    found = list(seen)
    if not any(len(rows) for rows, _ in found):
        return None
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in found])))
    d1, d2, d3 = (
        tuple(torch.cat([of[member][part] for _, of in found])[order] for part in (0, 1))
        for member in range(3)
    )
    return profile_of_members(ensemble, ((d1[0], d1[1]), (d2[0], d2[1]), (d3[0], d3[1])))


def profile_set(examples: PreparedSet, rows: np.ndarray, ensemble: Ensemble) -> Profile:
    """The profile of a project whose images are these rows (int64 [n], ascending) of a prepared set."""
    some = sampled(rows)
    features = examples.feature_matrix(ensemble.features)[some]
    return ensemble.profiled(ensemble.embed(examples.images(some), features))


def profile_plan(planned: Plan, ensemble: Ensemble) -> Profile | None:
    """The profile of a plan's source, here and now; None where nothing of it can be read.

    Args:
        planned: of all of a source, with ``ensemble.preparation``.
        ensemble: on the device on which it is to look.
    """
    return profile_of(embed_ranges(profiled_rows(planned.ranges), ensemble), ensemble.digest)


def finished(
    quarantined: Iterable[tuple[int, str]], parts: Iterable[Verdicts], about: Mapping[str, str]
) -> Verdicts:
    """The verdicts of a plan's ranges, in any order, with the rows that the plan quarantined.

    Args:
        quarantined: of the plan.
        parts: of its ranges.
        about: who judged (`Ensemble.about`).
    """
    return Verdicts.together([Verdicts.none(about).and_quarantined(quarantined), *parts])


def judge_ranges(ranges: Iterable[RowRange], ensemble: Ensemble) -> Iterator[Verdicts]:
    """Read, prepare and judge ranges; small ones together, so that networks see full batches."""
    waiting: list[PreparedRows] = []
    images = 0
    for rows in ranges:
        prepared = prepare_range(rows, ensemble.preparation)
        waiting.append(prepared)
        images += len(prepared.rows)
        if images >= TOGETHER:
            yield from judge_prepared(waiting, ensemble)
            waiting, images = [], 0
    if waiting:
        yield from judge_prepared(waiting, ensemble)


def judge_prepared(
    parts: Sequence[PreparedRows], ensemble: Ensemble, *, everyone: bool = False
) -> list[Verdicts]:
    """Judge the prepared images of some ranges, at least one, in one go.

    Args:
        parts: prepared with ``ensemble.preparation``.
        ensemble: on the device on which it is to judge.
        everyone: ask d3 about every image (see `Ensemble.judge`).

    Returns:
        for each part the verdicts on its rows, with those that could not be read.
    """
    judged = ensemble.judge(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.features for part in parts]),
        everyone=everyone,
    )
    made, start = [], 0
    for part in parts:
        end = start + len(part.rows)
        mine = judged.between(start, end).renumbered(-start).renumbered(part.rows)
        made.append(mine.and_quarantined(part.quarantined))
        start = end
    return made


def judge_set(
    examples: PreparedSet, rows: np.ndarray, ensemble: Ensemble, *, everyone: bool = False
) -> Iterator[Verdicts]:
    """Judge images of a prepared set, as many at once as memory should hold.

    Args:
        examples: prepared as ``ensemble.preparation`` says.
        rows: int64 [n], of the set.
        ensemble: on the device on which it is to judge.
        everyone: ask d3 about every image (see `Ensemble.judge`).
    """
    features = examples.feature_matrix(ensemble.features)
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        judged = ensemble.judge(examples.images(some), features[some], everyone=everyone)
        yield judged.renumbered(some)
