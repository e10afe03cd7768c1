"""The page beside verdicts on 3D classes: their ranking with pictures, and what they differ in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cryoray import report
from cryoray.boosting.within_job import TRAITS
from cryoray.formats.names import REPORT
from cryoray.models.class_volumes import VolumeVerdicts
from cryoray.preparation.volume_features import SLICES, VIEWS
from cryoray.settings import ClassifySettings

_TONES = {"keep": "kept", "discard": "discarded", "review": "for review"}


def write_page(
    folder: Path,
    volumes: VolumeVerdicts,
    particles: Mapping[str, int] | None,
    chosen: ClassifySettings,
    seconds: float,
) -> Path:
    """Write ``report.html`` into a folder of verdicts on 3D classes.

    Args:
        folder: of the verdicts.
        volumes: what was judged.
        particles: how many have each verdict of their class; None where the job names none.
        chosen: the settings in force.
        seconds: that it took.
    """
    title = f"3D classes of {volumes.classes.source.name}"
    return report.render(folder / REPORT, title, _sections(volumes, particles, chosen, seconds))


def _sections(
    volumes: VolumeVerdicts,
    counts: Mapping[str, int] | None,
    chosen: ClassifySettings,
    seconds: float,
) -> list[report.Section]:
    ensemble = volumes.ensemble
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
        report.command(), [chosen], {"ensemble": ensemble.digest}
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
