"""3D classes: judged by pictures of their maps and by what the job and the maps say, within the job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from cryoray import report
from cryoray.boosting.prevalence import log_odds
from cryoray.boosting.voting import score as vote_score
from cryoray.boosting.voting import verdicts
from cryoray.boosting.within_job import beside_the_best, review_band
from cryoray.errors import FormatError, InternalError, SettingsError
from cryoray.formats.class_volumes import VolumeClasses, open_volumes
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.relion import image_table
from cryoray.formats.star import parse
from cryoray.formats.verdicts import SIDES, write_side, write_verdicts
from cryoray.formats.volume import read_volume
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import resolve
from cryoray.preparation.class_relations import around, relations, window
from cryoray.preparation.prepare import prepare_images
from cryoray.preparation.reader import reason
from cryoray.preparation.volume_features import MEASURED, SLICES, VIEWS, measure, pictures
from cryoray.records import (
    MEMBERS,
    Event,
    OnEvent,
    OnProgress,
    Progress,
    Verdicts,
    ignore,
)
from cryoray.settings import Settings

TABLE, QUARANTINE, REPORT = "verdicts.parquet", "quarantine.parquet", "report.html"
#: The file of the particles of each verdict's classes: RELION's users look for particles.star.
PARTICLES = {
    "keep": "particles.star",
    "discard": "particles_discarded.star",
    "review": "particles_review.star",
}


@dataclass(frozen=True, slots=True)
class Trait:
    """Something in which the classes of a job differ, and what it tells.

    Attributes:
        name: of a column of the job, or of what is measured on its maps.
        unit: in which a person reads it.
        step: a difference that tells; negative where less is better.
        weight: what one step from the job's mean adds to the log-odds of keep, at most two steps.
        ratio: whether what counts is the logarithm.
    """

    name: str
    unit: str
    step: float
    weight: float
    ratio: bool = False

    def evidence(self, values: np.ndarray) -> np.ndarray:
        """float64 [n], log-odds; 0 where the value is not known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.log(np.where(values > 0, values, np.nan)) if self.ratio else values
        known = np.isfinite(x)
        if known.sum() < 2:
            return np.zeros(len(x))
        steps = (x - x[known].mean()) / self.step
        return self.weight * np.clip(np.where(known, steps, 0.0), -2, 2)


#: Steps are about what parts maps of 300 noisy projections of one phantom from all sides, from few sides, at
#: a fifth of the signal, and of noise alone. What the job itself claims weighs less than what its maps
#: show: resolution and accuracies improve where a class is over-fitted. Connectedness and completeness weigh
#: little, since RELION's good classes of one job differ in them by as much.
TRAITS = (
    Trait("connectedness", "", 0.25, 0.4),
    Trait("solvent", "", -0.05, 1.0),
    Trait("anisotropy", "", -0.1, 0.8),
    Trait("share", "", 0.5, 0.6, ratio=True),
    Trait("completeness", "", 0.05, 0.25),
    Trait("resolution", "Å", -0.2, 0.25, ratio=True),
    Trait("rotations", "°", -0.3, 0.25, ratio=True),
    Trait("translations", "Å", -0.3, 0.25, ratio=True),
)


def evidence(traits: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """float64 [n], log-odds: what the traits of a job's n classes say, [n] each by name."""
    found = np.zeros(n)
    for trait in TRAITS:
        if trait.name in traits:
            found += trait.evidence(traits[trait.name])
    return found


@dataclass(frozen=True, slots=True, eq=False)
class VolumeVerdicts:
    """The verdicts on the classes of a job; n of them were judged.

    Attributes:
        classes: all of the job.
        verdicts: on the classes; every member was asked about each, and those that could not be read are
            quarantined. Further columns: particles, looks, and the traits.
        traits: float64 [n] by name of `TRAITS`.
        pictures: float32 [n, SLICES + views, s, s], each with a scale of its own.
    """

    classes: VolumeClasses
    verdicts: Verdicts
    traits: Mapping[str, np.ndarray]
    pictures: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """int64 [n], 0-based, those that were judged."""
        return self.verdicts.rows


def judge_volumes(
    classes: VolumeClasses, ensemble: Ensemble, on_progress: OnProgress = ignore
) -> VolumeVerdicts:
    """Judge the classes of a job in this process.

    A class's three central slices and its projections are judged as 2D classes without metadata; the
    mean of the log-odds of each member is moved by the evidence of `TRAITS`, in which the classes are
    compared with each other; so the score is the median of three, and the vote cannot disagree with it.
    No calibration vouches for the level of a map's pictures, so it is that of the job's best class that
    counts: scores are moved until that one lies as far above the threshold as a good class may lie below
    it. The best class is always kept.

    Raises:
        EnsembleError: the ensemble judges something else than 2D classes.
    """
    ensemble.check_kind("class2d", classes.path)
    ensemble = ensemble.to()
    counted = classes.particles
    looked: list[tuple[int, np.ndarray, float, float, dict[str, float]]] = []
    quarantined: list[tuple[int, str]] = []
    for row, path in enumerate(classes.volumes):
        on_progress(Progress("look", row + 1, len(classes), "classes"))
        if counted[row] == 0:
            quarantined.append((row, "no particle belongs to it"))
            continue
        try:
            volume, pixel_size = read_volume(path)
            pixel_size = classes.pixel_size or pixel_size
            radius = 0.5
            if classes.diameter and pixel_size:
                radius = min(radius, classes.diameter / pixel_size / len(volume) / 2)
            measured = measure(volume, radius)
            shown, side = pictures(volume)
        except FormatError as error:
            quarantined.append((row, reason(error)))
            continue
        scale = (pixel_size or np.nan) * len(volume) / side
        looked.append((row, shown, scale, radius * side, measured))
    seen: list[tuple[int, np.ndarray, dict[str, float], np.ndarray]] = []
    part = _window(looked) if ensemble.preparation.geometry == "job" else None
    for row, shown, scale, _, measured in looked:
        sizes = np.full(len(shown), scale, np.float32)
        window = None if part is None else max(8, 2 * round(part * shown.shape[1] / 2))
        prepared, bad = prepare_images(shown, sizes, False, ensemble.preparation, side=window)
        if bad:
            quarantined.append((row, next(iter(bad.values()))))
            continue
        nothing = np.full((len(shown), len(ensemble.features)), np.nan, np.float32)
        judged = ensemble.judge(prepared, nothing, everyone=True)
        # Cut at 1:1000: no single picture may outvote the others.
        probabilities = (np.clip(getattr(judged, name), 1e-3, 1 - 1e-3) for name in MEMBERS)
        odds = np.array([log_odds(one).mean() for one in probabilities])
        seen.append((row, odds, measured, prepared))
    rows = np.array([row for row, *_ in seen], np.int64)
    odds = np.array([odds for _, odds, *_ in seen]).reshape(-1, len(MEMBERS))
    traits = {name: np.array([one[2][name] for one in seen]) for name in MEASURED}
    known = {**classes.statistics, "share": classes.share}
    for trait in TRAITS:
        if trait.name in known:
            traits[trait.name] = known[trait.name][rows]
    moved = beside_the_best(odds + evidence(traits, len(rows))[:, None], ensemble.threshold)
    d1, d2, d3 = (_probability(column) for column in moved.T)
    score = vote_score(d1, d2, d3)
    review = ensemble.review
    if review[0] < review[1]:
        review = review_band(ensemble.threshold)
    verdict = verdicts(score, review)
    columns = {
        "score": score,
        "verdict": verdict,
        "d1": d1,
        "d2": d2,
        "d3": d3,
        "particles": counted[rows],
        # The mean probability of keep of a class's pictures alone.
        "looks": _probability(np.median(odds, axis=1)) if len(rows) else np.empty(0, np.float32),
        **traits,
    }
    return VolumeVerdicts(
        classes,
        Verdicts.of(rows, columns, quarantined, ensemble.about),
        traits,
        np.array([one[3] for one in seen], np.float32),
    )


def _window(
    looked: Sequence[tuple[int, np.ndarray, float, float, dict[str, float]]],
) -> float | None:
    """Side of the window for all classes of a job, a fraction of their boxes; None where there is none."""
    parts = []
    for _, shown, _, radius, _ in looked:
        views, within = around(shown[SLICES:].astype(np.float64), radius)
        parts.append(window(relations(views, within), radius, shown.shape[1]) / shown.shape[1])
    return float(np.median(parts)) if parts else None


def _probability(odds: np.ndarray) -> np.ndarray:
    return np.asarray(expit(odds), np.float32)


def classify_volumes(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> Path:
    """Judge the classes of a 3D classification, and write the particles of each verdict's classes.

    Args:
        source: as `open_volumes` takes it.
        out: folder of the verdicts on the classes (contracts: Verdicts), with the particles of those kept
            in ``particles.star``, of the others beside it, and the ranking with pictures as a page.
        settings: ``registry`` and ``classify`` are used.
        on_progress: as classes are looked at.
        on_event: ``classify.done``.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: nothing can be read, or ``out`` holds something else.
        EnsembleError: there is no such ensemble, or it judges something else than 2D classes.
        QuarantineError: no class could be read; the list is written.
        SettingsError: a policy is given.
    """
    began = time.monotonic()
    out, chosen = Path(out).absolute(), settings.classify
    if chosen.policy is not None:
        raise SettingsError(
            f"no policy ({chosen.policy}) draws the line among 3D classes: they are held against the best of "
            "their job",
            remedy="leave out --policy",
        )
    path = resolve(chosen.ensemble, settings.registry, "class3d")
    ensemble = Ensemble.load(path, review=chosen.review)
    classes = open_volumes(Path(source))
    with replacing_folder(out, "folder of verdicts", lambda it: (it / TABLE).is_file()) as partial:
        volumes = judge_volumes(classes, ensemble, on_progress)
        row_counts = write_verdicts(partial, classes.source, volumes.verdicts)
        counts = _write_particles(partial, volumes)
        seconds = time.monotonic() - began
        page = _sections(volumes, ensemble, counts, settings, seconds)
        report.render(partial / REPORT, f"3D classes of {classes.source.name}", page)
        on_event(
            Event(
                "classify.done",
                {
                    "out": str(out),
                    "ensemble": ensemble.digest,
                    "row_counts": str(row_counts),
                    **asdict(row_counts),
                    **volumes.verdicts.verdict_counts(),
                    "particles": counts,
                    "seconds": round(seconds, 1),
                },
            )
        )
    row_counts.check(max_quarantined=1.0, listed_in=out / QUARANTINE)
    return out


def _write_particles(out: Path, volumes: VolumeVerdicts) -> dict[str, int] | None:
    """Particles by verdict of their class, those of quarantined classes as ``quarantined``."""
    classes = volumes.classes
    if classes.data is None or classes.number is None:
        return None
    of_class = np.full(len(classes) + 1, "quarantined", object)
    of_class[volumes.rows + 1] = volumes.verdicts.verdict
    fate = of_class[np.where(classes.number <= len(classes), classes.number, 0)]
    star = parse(classes.data)
    if len(image_table(star, "particle")) != len(fate):
        raise InternalError(f"{classes.data} changed while its classes were judged")
    counts = {verdict: int((fate == verdict).sum()) for verdict in SIDES}
    for verdict, name in {**PARTICLES, "quarantined": "particles_quarantined.star"}.items():
        rows = np.flatnonzero(fate == verdict)
        with replacing(out / name) as temporary, temporary.open("wb") as file:
            write_side(file, star, "particle", rows)
    return counts


_TONES = {"keep": "kept", "discard": "discarded", "review": "for review"}


def _sections(
    volumes: VolumeVerdicts,
    ensemble: Ensemble,
    counts: Mapping[str, int] | None,
    settings: Settings,
    seconds: float,
) -> list[report.Section]:
    classes, judged = volumes.classes, volumes.verdicts
    order = np.argsort(-judged.score, kind="stable")
    kept = int((judged.verdict == "keep").sum())
    facts = {"particles kept": f"{counts['keep']:,} of {sum(counts.values()):,}"} if counts else {}
    sections = [
        report.summary_section(
            f"{kept} of {len(classes)} classes are kept. A class is judged by three central slices and"
            f" {len(VIEWS)} projections of its map with an ensemble of 2D classes, and compared with the"
            " other classes of the job; no calibration of this score on 3D classes vouches for it.",
            {"source": classes.path, "ensemble": f"{ensemble.digest[:12]}, made for class2d"},
            {"threshold": f"{ensemble.threshold:.3f}", "seconds": f"{seconds:.1f}"},
            {"classes kept": f"{kept}", **facts},
        )
    ]
    strips = []
    particles, looks = classes.particles[volumes.rows], judged.column("looks")
    for place in order.tolist():
        verdict = str(judged.verdict[place])
        shown = volumes.pictures[place, : SLICES + 3]
        strips.append(
            report.Strip(
                f"Class {volumes.rows[place] + 1}: {_TONES[verdict]}",
                verdict,
                shown,
                np.full(len(shown), judged.score[place]),
                [f"slice {i}" for i in "zyx"] + [f"projection along {i}" for i in "zxy"],
                _words(volumes, place, particles[place]),
            )
        )
    sections.append(
        report.gallery_section(
            strips,
            "Ranking",
            "Best first. Three central slices, then three projections along the same axes.",
        )
    )
    known = [trait for trait in TRAITS if trait.name in volumes.traits]
    rows = [
        (
            f"{volumes.rows[place] + 1}",
            f"{judged.score[place]:.3f}",
            f"{looks[place]:.3f}",
            *(_shown(volumes.traits[trait.name][place]) for trait in known),
        )
        for place in order.tolist()
    ]
    heads = [f"{t.name}{', ' + t.unit if t.unit else ''}" for t in known]
    sections.append(
        report.table_section(
            "What tells them apart",
            ("class", "score", "pictures alone", *heads),
            rows,
            "connectedness: share of the brightest voxels that lie in one body. solvent: its deviation over"
            " the contrast with the protein. anisotropy: of power, between directions. The rest is what the"
            " job's files say; share is of its particles.",
        )
    )
    if judged.quarantined:
        sections.append(
            report.table_section(
                "Not judged",
                ("class", "reason"),
                [(f"{r + 1}", why) for r, why in judged.quarantined],
            )
        )
    provenance = report.provenance_section(
        report.command(), [settings.classify], {"ensemble": ensemble.digest}
    )
    return [*sections, provenance]


def _words(volumes: VolumeVerdicts, place: int, particles: float) -> str:
    """Particles, share and resolution of a class, as far as they are known."""
    row, words = volumes.rows[place], []
    if np.isfinite(particles):
        words.append(f"{particles:,.0f} particles")
    for name, text in (("distribution", "class distribution {:.1%}"), ("resolution", "{:.1f} Å")):
        value = volumes.classes.statistics.get(name, np.full(len(volumes.classes), np.nan))[row]
        if np.isfinite(value):
            words.append(text.format(value))
    return ", ".join(words) + f". Score {volumes.verdicts.score[place]:.3f}."


def _shown(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "–"
