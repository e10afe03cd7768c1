"""The page about a facility's day, and what it needs to know of the new collection."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from cryoray import report
from cryoray.formats.names import PREDICTIONS_TABLE, REPORT, TRAINING, VERDICTS_TABLE
from cryoray.formats.source import Source, open_source
from cryoray.models.ensemble import Manifest
from cryoray.preparation.look import look_at
from cryoray.report.verdicts import strips
from cryoray.session.judging import place
from cryoray.settings import PreparationSettings, load
from cryoray.simulation import read_truth

from .microscope import exposures


@task(cache_policy=NO_CACHE, task_run_name="report on {out}")
def write_report(
    out: Path,
    new: Path,
    session: Path,
    ensemble: Path,
    held_out: dict[str, Any],
    live: dict[str, Any],
    by_shipped: Path,
    shipped: dict[str, Any],
    speed: float,
    overrides: dict[str, Any],
    command: str,
) -> Path:
    """One page: what was found, lost and passed, how good that is, and how training went.

    Args:
        out: folder of the day.
        new: the new collection.
        session: folder of the session in which it was judged live.
        ensemble: that was trained.
        held_out: numbers of the past groups that took no part in training.
        live: numbers of the new collection, judged live.
        by_shipped: folder of verdicts of the ensemble that ships.
        shipped: its numbers.
        speed: images per second of the session.
        overrides: settings of the training.
        command: that made all this.
    """
    source, manifest, settings = open_source(new), manifest_of(ensemble), load(**overrides)
    training = json.loads((ensemble / TRAINING).read_text())
    labels, score = _predictions(out / "evaluation")
    keep, kind = truth(source)
    table = judged(source, session)
    known = keep[table["row"].to_numpy()] >= 0
    good = keep[table["row"].to_numpy()] == 1
    ships = verdicts_of(source, by_shipped)
    live_score = table["score"].to_numpy()
    bound = settings.train.operating_point.bound
    forced = live_score >= manifest.threshold
    review = np.array(table["verdict"].to_pylist(), object) == "review"
    sections = [
        report.summary_section(
            "An ensemble learned from past projects, and judged a new collection stack by stack while it"
            " was recorded.",
            {
                "past groups, trained on": len(manifest.training_groups),
                "past groups, held out": held_out["spread"]["accuracy"]["groups"],
                "new collection": f"{len(source):,} images",
            },
            {"ensemble": ensemble, "verdicts": session, "digest": manifest.digest[:12]},
            {
                "accuracy": report.percent(live["accuracy"]),
                "good images lost": report.percent(live["false_negative_rate"]),
                "junk let through": report.percent(live["false_positive_rate"]),
                "images per second": f"{speed:,.0f}",
            },
        ),
        outcomes_section(
            source,
            table,
            keep,
            manifest.threshold,
            manifest.preparation,
            "trained here, judged live",
        ),
        *_about(
            "The ensemble that ships",
            [
                report.result_section(
                    shipped,
                    f"The same collection, by the ensemble that ships, against {_truth_of(kind)}.",
                ),
                *_by_kind(
                    kind[ships["row"].to_numpy()],
                    ships["score"].to_numpy() >= np.float32(threshold_of(ships)),
                ),
            ],
        ),
        *_about(
            "New collection",
            [
                report.result_section(
                    live, f"As the service judged it, against {_truth_of(kind)}."
                ),
                decisions_section(forced, review),
                report.confusion_section(good[known], live_score[known], manifest.threshold),
                *_by_kind(kind[table["row"].to_numpy()], forced),
                report.gallery_section(
                    strips(source, table, manifest.preparation),
                    "Images",
                    "As the networks saw them: windowed, rescaled, normalised. What is under review has"
                    " strips of its own, and is not among the kept and discarded here.",
                ),
                report.views_section(live["by_view"], bound),
            ],
        ),
        *_about(
            "Past projects held out",
            [
                report.result_section(
                    held_out,
                    "Of groups that took no part in training, against what a person selected.",
                ),
                report.roc_section(labels, score, manifest.threshold, bound),
                report.calibration_section(labels, score, manifest.threshold, manifest.review),
            ],
        ),
        report.curves_section(training),
        report.bound_section(training["bound"]),
        report.provenance_section(command, [settings.train]),
    ]
    return report.render(out / REPORT, "A facility's day", sections)


#: What decisions turned out to be: heading and tone of the strip, whether images are good, whether kept.
_OUTCOMES = (
    ("Junk that was found", "keep", False, False),
    ("Good images that were lost", "discard", True, False),
    ("Junk that passed", "discard", False, True),
    ("Good images that were kept", "keep", True, True),
)
_SHOWN = 24
#: The accuracy that people hope for.
_HOPED = 0.9


def outcomes_section(
    source: Source,
    table: pa.Table,
    keep: np.ndarray,
    threshold: float,
    preparation: PreparationSettings,
    by: str,
) -> report.Section:
    """Pictures of what was found, lost and passed by the forced decision, the surest first.

    Args:
        source: the collection.
        table: verdicts, with ``row``.
        keep: int8 [n], of each image of the collection: 1 keep, 0 discard, -1 no label.
        threshold: at which scores keep.
        preparation: of the ensemble.
        by: who judged, for the heading.
    """
    rows, score = table["row"].to_numpy(), table["score"].to_numpy()
    label, kept = keep[rows], score >= np.float32(threshold)
    made = []
    for title, tone, good, keeps in _OUTCOMES:
        those = np.flatnonzero((label == good) & (kept == keeps))
        if not len(those):
            continue
        surest = those[np.argsort(score[those] * (-1 if keeps else 1), kind="stable")][:_SHOWN]
        found, images, _ = look_at(source, np.sort(rows[surest]), preparation)
        at = np.searchsorted(rows, found)
        made.append(
            report.Strip(
                title, tone, images, score[at], source.images[found], f"{len(those):,} images"
            )
        )
    return report.gallery_section(
        made,
        f"Found, lost and passed: {by}",
        f"By the forced decision, against the truth; of each the {_SHOWN} that the ensemble is surest of.",
    )


def _about(what: str, sections: Iterable[report.Section]) -> list[report.Section]:
    """The sections under headings that name the images which they are about."""
    return [
        replace(one, title=f"{what}: {one.title[:1].lower()}{one.title[1:]}") for one in sections
    ]


def decisions_section(forced: np.ndarray, review: np.ndarray) -> report.Section:
    """How many are kept by the forced decision, which all rates are of, and what a review leaves of them.

    Args:
        forced: bool [n], whether the score reaches the threshold.
        review: bool [n], whether a person should look.
    """
    rows = [
        (name, f"{(forced & those).sum():,}", f"{(~forced & those).sum():,}")
        for name, those in (
            ("forced decision, all images", np.ones(len(forced), bool)),
            ("of these under review", review),
            ("decided without a person", ~review),
        )
    ]
    return report.table_section(
        "Kept and discarded",
        ("", "kept", "discarded"),
        rows,
        "Every count and rate on this page is of the forced decision, review included, unless it says so.",
    )


def truth(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """What the images of a collection are, as its ``truth.csv`` says.

    Returns:
        int8 [n], 1 keep, 0 discard, -1 not said; and str objects [n], the kind of image, '' where not said.
    """
    lines = read_truth(source.path.parent)
    line_of = {(line["stack"], int(line["index"])): line for line in lines}
    keep, kind = np.full(len(source), -1, np.int8), np.full(len(source), "", object)
    for row, image in enumerate(source.images):
        index, _, stack = image.partition("@")
        if line := line_of.get((stack, int(index))):
            keep[row], kind[row] = int(line["keep"]), line.get("kind", "")
    return keep, kind


def judged(source: Source, session: Path) -> pa.Table:
    """The verdicts of a session in which the collection was recorded again, with its row of each, in order.

    Args:
        source: the collection.
        session: folder of the session; the stacks are in ``live`` beside the folder of sessions.
    """
    live, tables = session.parents[1] / "live", []
    for stem, rows in exposures(source):
        file = place(live, session, live / f"{stem}.mrcs") / VERDICTS_TABLE
        if file.is_file():  # else the whole stack was set aside
            table = pq.read_table(file)
            frames = [int(name.partition("@")[0]) - 1 for name in table["image"].to_pylist()]
            tables.append(table.append_column("row", pa.array(rows[frames])))
    return pa.concat_tables(tables).sort_by("row")


def verdicts_of(source: Source, folder: Path) -> pa.Table:
    """The verdicts in a folder that ``classify`` wrote, with the row of each in its source."""
    table = pq.read_table(folder / VERDICTS_TABLE)
    row_of = {name: row for row, name in enumerate(source.images.tolist())}
    rows = [row_of[name] for name in table["image"].to_pylist()]
    return table.append_column("row", pa.array(rows)).sort_by("row")


def threshold_of(table: pa.Table) -> float:
    """The threshold that a table of verdicts names."""
    return float(table.schema.metadata[b"threshold"])


def manifest_of(ensemble: Path) -> Manifest:
    """What the ensemble says of itself."""
    return Manifest.model_validate_json((ensemble / "ensemble.json").read_text())


def passed_junk(source: Source, table: pa.Table) -> dict[str, int]:
    """Junk images that a table of verdicts keeps, by what they show, most first; {} where nobody knows.

    Args:
        source: the collection.
        table: verdicts, with ``row``.
    """
    keep, kind = truth(source)
    rows = table["row"].to_numpy()
    kept = table["score"].to_numpy() >= np.float32(threshold_of(table))
    shown = kind[rows[kept & (keep[rows] == 0)]]
    return dict(Counter(one.replace("_", " ") for one in shown.tolist() if one).most_common())


def verdict_in_words(metrics: Mapping[str, Any], passed: Mapping[str, int]) -> str:
    """Whether the ensemble that ships did what people hope for on the new collection, and what is missing.

    Args:
        metrics: of its forced decision.
        passed: `passed_junk`.
    """
    lost, right = metrics["false_negative_rate"], metrics["accuracy"]
    line = (
        f"The ensemble that ships is right about {right:.0%} of a collection that it has never seen, and"
        f" loses {lost:.1%} of its good images."
    )
    if right >= _HOPED or not passed:
        return line
    some = ", ".join(f"{kind} {count}" for kind, count in list(passed.items())[:3])
    return (
        f"{line} That is less than {_HOPED:.0%}, since junk that looks like particles passes rather than good"
        f" images being lost: {some}."
    )


def _predictions(evaluation: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label (bool) and score (float) of each image of the groups held out."""
    table = pq.read_table(evaluation / PREDICTIONS_TABLE, columns=["label", "score"])
    return table["label"].to_numpy(), table["score"].to_numpy()


def _truth_of(kind: np.ndarray) -> str:
    return "the truth that was simulated" if kind.any() else "what a person selected"


def _by_kind(kind: np.ndarray, kept: np.ndarray) -> Iterator[report.Section]:
    """What the ensemble makes of each kind of image that was simulated."""
    names, counts = np.unique(kind[kind != ""].astype(str), return_counts=True)
    if len(names):
        rows = [
            (name, f"{count:,}", report.percent(float(kept[kind == name].mean()), 1))
            for name, count in zip(names.tolist(), counts.tolist(), strict=True)
        ]
        yield report.table_section("By kind", ("kind", "images", "kept"), rows)
