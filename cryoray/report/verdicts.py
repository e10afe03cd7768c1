"""The page beside verdicts: what went in and out, how scores lie, how the images of each side look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cryoray import report
from cryoray.boosting.expected import OPEN, expected, weights
from cryoray.boosting.operating_point import at_line
from cryoray.boosting.prevalence import Prevalence
from cryoray.formats.names import REPORT
from cryoray.formats.source import Source
from cryoray.imaging.pictures import LOW_PASS
from cryoray.models.ensemble import Ensemble, Manifest
from cryoray.preparation.features import chosen_features, source_features
from cryoray.preparation.look import look_at
from cryoray.preparation.reader import by_reason
from cryoray.records import (
    EMPTY_CLASS,
    REASON_WORDS,
    VERDICTS,
    RowCounts,
    Verdicts,
    quarantine_words,
)
from cryoray.settings import ClassifySettings, PreparationSettings

#: Images in each strip of the gallery: of particles a sample, of classes all that a person would look at.
_SHOWN, _CLASSES_SHOWN = 24, 200
#: Rows of the table of what was not judged.
_NOT_JUDGED = 200
_LISTED = (
    "They have no verdict, and are in none of the files but quarantined and quarantine.parquet."
)
#: A particle's reason may be its class, of which there are many.
_BY_CLASS = "its class is discarded"
#: Entries of an operating point whose names do not say all.
_POINT = {"achieved": "lost of all good images of training together"}
_TITLES = {"keep": "Kept", "discard": "Discarded", "review": "For review"}


def write_page(
    folder: Path,
    source: Source,
    verdicts: Verdicts,
    ensemble: Ensemble,
    row_counts: RowCounts,
    chosen: ClassifySettings,
    seconds: float,
    share: Prevalence | None = None,
    invert: bool | None = None,
    unknown: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` and its figures into a folder of verdicts.

    Args:
        folder: of the verdicts.
        source: whose rows were judged.
        verdicts: on them.
        ensemble: that judged.
        row_counts: rows in and out.
        chosen: the settings in force.
        seconds: that it took.
        share: of images worth keeping, as estimated from the scores.
        invert: whether protein is dark in the source, where that is known.
        unknown: columns of RELION's optics table that the files written lack.
    """
    manifest, table, counts = ensemble.manifest, verdicts.judged, verdicts.counts()
    sections = [
        report.summary_section(
            f"{counts['keep']:,} of {len(source):,} images are kept, {counts['review']:,} wait for review. An"
            f" ensemble of three networks judged them; a score at or above {manifest.threshold:.3f} keeps"
            f" (policy {ensemble.policy}).",
            {
                "source": source.path,
                "ensemble": f"{ensemble.digest[:12]}, made for {manifest.kind}",
                **_profile(ensemble),
            },
            {
                "rows": row_counts,
                "files": ", ".join(
                    sorted(path.name for path in folder.iterdir() if path.is_file())
                ),
                "seconds": f"{seconds:.1f}",
                **({"good images, estimated": _estimated(share)} if share else {}),
                **_expected(source, verdicts, ensemble, invert),
                **_at_this_line(ensemble),
                **_forced(verdicts),
                **({"not known": optics_words(unknown)} if unknown else {}),
            },
            {_TITLES[name].lower(): f"{counts[name]:,}" for name in VERDICTS},
        )
    ]
    if len(table):
        sections += [
            *_reasons(table),
            _gallery(source, table, ensemble.preparation, invert),
            report.scores_section(verdicts.score, manifest.threshold, manifest.review),
            _vouched(manifest),
        ]
    sections += _not_judged(source, verdicts)
    sections.append(
        report.provenance_section(report.command(), [chosen], {"ensemble": ensemble.digest})
    )
    return report.render(folder / REPORT, f"Verdicts about {source.name}", sections)


def optics_words(unknown: Sequence[str]) -> str:
    """What to do about columns of the optics table that no header of a stack tells."""
    return (
        f"{', '.join(unknown)}: RELION stops until they are added to data_optics of the STAR files written;"
        " with a STAR file that has them beside the stack they are taken from there"
    )


def _profile(ensemble: Ensemble) -> dict[str, str]:
    """By which profile the project was judged, or why by none; nothing where the ensemble knows none."""
    if ensemble.profile is None:
        return {"profile": "none: each image by itself"} if ensemble.takes_profile else {}
    name, images = ensemble.profile.digest[:12], ensemble.profile.images
    if ensemble.uses_profile:
        return {"profile": f"{name}, of {images:,} images of this project"}
    return {"profile": f"{name}, unlike any project of training: each image was judged by itself"}


def _at_this_line(ensemble: Ensemble) -> dict[str, str]:
    """What the ensemble's projects lost and let through at this threshold, where it knows."""
    known = ensemble.manifest.expectation
    if not known:
        return {}
    lost, through = at_line(known, ensemble.threshold)
    return {
        "at this line, on projects of training": f"{report.percent(lost)} of good images lost,"
        f" {report.percent(through)} of junk kept (means over projects, each judged by networks that had not"
        " seen it)"
    }


def _expected(
    source: Source, verdicts: Verdicts, ensemble: Ensemble, invert: bool | None
) -> dict[str, str]:
    """What this project loses by the scores of its own images, the number that `cryoray select` shows."""
    table = verdicts.judged
    if not len(table):
        return {}
    held = (_in_words(table) == _BY_CLASS) & (verdicts.verdict == "discard")
    particles = np.full(len(source), np.nan)
    if source.kind == "class2d":
        particles, _ = _job_says(source, ensemble.preparation, bool(invert))
    found = expected(
        np.where(held, 0.0, verdicts.score),
        np.full(len(table), OPEN),
        (verdicts.score >= np.float32(ensemble.threshold)) & ~held,
        weights(particles[verdicts.rows]),
    )
    return {
        "expected here, by the scores": f"{report.percent(found.loss)} of the good lost,"
        f" {report.percent(found.junk)} of the kept junk, with review as the threshold decides (calibrated"
        " scores of these images, counted in particles; the selection page shows the same)"
    }


def _forced(verdicts: Verdicts) -> dict[str, str]:
    """What becomes of the images under review where nobody looks."""
    count, kept = verdicts.counts()["review"], verdicts.review_kept()
    return {"of review, kept by the threshold": f"{kept:,} of {count:,}"} if count else {}


def _estimated(share: Prevalence) -> str:
    low, estimate, high = (
        report.percent(part, 0) for part in (share.low, share.estimate, share.high)
    )
    return f"{estimate} ({low} to {high} by chance alone; in training {report.percent(share.training, 0)})"


def _vouched(manifest: Manifest) -> report.Section:
    """What stands behind the line."""
    point = manifest.operating_point
    rows = [
        (_POINT.get(name, name.replace("_", " ")), str(value))
        for name, value in point.items()
        if name != "threshold"
    ]
    return report.table_section(
        "Operating point",
        ("", "value"),
        rows,
        "How the threshold was set when the ensemble was trained: the bound on good images lost in a new"
        " project, the level at which it was calibrated, and the share lost of all good images of training"
        " together, to which large projects contribute more than to the mean over projects above. Nothing on"
        " this page measures errors: there are no labels here.",
        f"The line is {manifest.behind}.",
    )


def _in_words(table: pa.Table) -> np.ndarray:
    """The reason of each row, object [n], '' where there is none; whatever the class is one reason."""
    words = [REASON_WORDS.get(one, _BY_CLASS) if one else "" for one in table["reason"].to_pylist()]
    return np.array(words, object)


def _by_number(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(one for one in reasons if one).most_common())


def _reasons(table: pa.Table) -> list[report.Section]:
    """What was discarded for which reason; nothing where no reasons are given."""
    counts = _by_number(_in_words(table))
    if not counts:
        return []
    return [
        report.table_section(
            "Why images were discarded",
            ("likeliest reason", "images", "of all judged"),
            [(why, f"{n:,}", f"{n / len(table):.1%}") for why, n in counts.items()],
            "A network of its own names the likeliest reason of each discard, from the image alone. It was"
            " taught on simulated images, has no part in the verdict, and always names one: look at the"
            " images below before you believe it.",
        )
    ]


def _not_judged(source: Source, verdicts: Verdicts) -> list[report.Section]:
    """Rows without a verdict, and why: each class, particles by their reasons; nothing of none."""
    lost = [(row, quarantine_words(why, source.kind)) for row, why in verdicts.quarantined]
    if not lost:
        return []
    if source.kind == "particle":
        counts = by_reason(why for _, why in lost)
        rows = [(why, f"{n:,}") for why, n in counts.items()][:_NOT_JUDGED]
        return [report.table_section("Not judged", ("reason", "images"), rows, _LISTED)]
    numbers = source.frame + (source.format != "cs")
    classes = [(f"class {numbers[row]}", why) for row, why in lost[:_NOT_JUDGED]]
    return [report.table_section("Not judged", ("class", "reason"), classes, _LISTED)]


def _gallery(
    source: Source, table: pa.Table, settings: PreparationSettings, invert: bool | None
) -> report.Section:
    seen = "As the networks saw them: windowed, rescaled, normalised, protein bright"
    if source.kind == "class2d":
        return report.gallery_section(
            class_strips(source, table, settings, invert),
            "Classes",
            f"{seen}; the best score first. Particles are counted by their most probable class.",
        )
    shown = strips(source, table, settings, invert)
    return report.gallery_section(
        shown,
        "Images",
        f"{seen}; low-passed to {LOW_PASS:g} Å for the eye; spread evenly over the source.",
    )


def class_strips(
    source: Source, table: pa.Table, settings: PreparationSettings, invert: bool | None = None
) -> list[report.Strip]:
    """The classes kept, for review and discarded, the best score first, with what a person goes by.

    Under each stand its number, particles and resolution, as far as the job's files have them, its score
    and, of a discard, the reason. RELION counts classes from 1, cryoSPARC from 0.

    Args:
        source: of the classes.
        table: verdicts, with ``row``.
        settings: how the networks had them prepared.
        invert: whether protein is dark in the source, where that is known.
    """
    verdict = np.array(table["verdict"].to_pylist(), object)
    rows, score = table["row"].to_numpy(), table["score"].to_numpy()
    reason = _in_words(table)
    numbers = source.frame + (source.format != "cs")
    particles, resolution = _job_says(source, settings, bool(invert))
    made = []
    for tone in ("keep", "review", "discard"):
        those = np.flatnonzero(verdict == tone)
        those = those[np.argsort(-score[those], kind="stable")]
        if not len(those):
            continue
        shown = those[:_CLASSES_SHOWN]
        found, images, _ = look_at(source, rows[shown], settings, invert)
        place = {row: at for at, row in enumerate(found.tolist())}
        shown = np.array([at for at in shown if rows[at] in place], np.int64)
        captions = []
        for at in shown:
            row = rows[at]
            lines = [f"class {numbers[row]}"]
            if np.isfinite(particles[row]):
                count = round(particles[row])
                some = f"{count:,} particle{'' if count == 1 else 's'}"
                lines.append(some if count else EMPTY_CLASS)
            if np.isfinite(resolution[row]):
                lines.append(f"{resolution[row]:.1f}\N{NO-BREAK SPACE}Å")
            elif np.isfinite(resolution).any():
                lines.append("resolution unknown")
            lines.append(f"score {score[at]:.2f}")
            captions.append([*lines, reason[at]] if reason[at] else lines)
        note = f"{len(those):,} classes"
        if np.isfinite(particles[rows[those]]).any():
            note += f", {np.nansum(particles[rows[those]]):,.0f} particles"
        if len(those) > _CLASSES_SHOWN:
            note += f"; the best {_CLASSES_SHOWN} are shown"
        made.append(
            report.Strip(
                _TITLES[tone],
                tone,
                images[[place[row] for row in rows[shown].tolist()]],
                score[shown],
                source.images[rows[shown]],
                note,
                captions,
            )
        )
    return made


def _job_says(
    source: Source, settings: PreparationSettings, invert: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Particles of each class by hard assignment, and its resolution in Å; [n], NaN where not known."""
    names = ("particle_number", "estimated_resolution")
    values = source_features(source, names, diameter=settings.diameter, invert=invert)
    particles, resolution = (
        feature.in_units(column)
        for feature, column in zip(chosen_features(source.kind, names), values.T, strict=True)
    )
    return particles, resolution


def strips(
    source: Source, table: pa.Table, settings: PreparationSettings, invert: bool | None = None
) -> list[report.Strip]:
    """Some kept, discarded and review images, spread evenly over the source; discards by reason.

    Args:
        source: of the images.
        table: verdicts, with ``row``.
        settings: how the networks had them prepared.
        invert: whether protein is dark in the source, where that is known.
    """
    table = table.sort_by("row")
    verdict = np.array(table["verdict"].to_pylist(), object)
    rows, score = table["row"].to_numpy(), table["score"].to_numpy()
    reason = _in_words(table)
    asked = [
        (tone, f"{title}: {why}" if why else title, why)
        for tone, title in _TITLES.items()
        for why in ("", *_by_number(reason[verdict == tone]))
    ]
    made = []
    for tone, title, why in asked:
        those = np.flatnonzero((verdict == tone) & (reason == why))
        if len(those):
            some = those[np.unique(np.linspace(0, len(those) - 1, _SHOWN).astype(int))]
            found, images, _ = look_at(source, rows[some], settings, invert)
            place = np.searchsorted(rows, found)
            made.append(
                report.Strip(
                    title,
                    tone,
                    images,
                    score[place],
                    source.images[found],
                    f"{len(those):,} images",
                )
            )
    return made
