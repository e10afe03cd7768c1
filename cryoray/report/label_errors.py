"""Labels that are likely wrong, for the person who gave them: a page to look at and a table to work on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from cryoray import report
from cryoray.errors import InputError
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.names import REPORT
from cryoray.models.ensemble import HELD_OUT, training_record
from cryoray.preparation.prepared import PreparedSet

TABLE = "suspected_labels.csv"

#: Images in each strip of the page; the table has all.
_SHOWN = 96


def report_labels(ensemble: Path, sets: Sequence[Path], out: Path) -> int:
    """Write `suspected_labels.csv` and `report.html` with pictures, the most confident first.

    An image is suspect where networks that had not seen its group are as sure of the other label as they
    are, in the mean, of images that carry it (`boosting.filtering.suspected_labels`). The first network's
    probability (``d1``) raises the suspicion, so it orders the images and stands under them; ``score``
    of the table is the vote of all three, which may think otherwise. Boosting left these images out.

    Args:
        ensemble: folder of one that was trained on the sets.
        sets: prepared sets, for the pictures; images of others are in the table alone.
        out: folder; what this wrote there before is replaced.

    Returns:
        how many labels are suspect.

    Raises:
        InputError: the ensemble has no record of its scores of images held out, or ``out`` holds
            something else.
    """
    file = Path(ensemble) / HELD_OUT
    if not file.is_file():
        raise InputError("there is no such record", file=file, remedy="train the ensemble again")
    held_out = pq.read_table(file)
    table = held_out.filter(held_out["suspected"]).drop_columns("suspected")
    score, keep = table["d1"].to_numpy(), table["keep"].to_numpy(zero_copy_only=False)
    order = np.argsort(np.where(keep, score, 1 - score), kind="stable")
    table, score, keep = table.take(order), score[order], keep[order]
    with replacing_folder(Path(out).absolute(), "report of labels", _is_report) as partial:
        with replacing(partial / TABLE) as temporary:
            csv.write_csv(table, temporary)
        n = len(held_out)
        images = _pictures(table, [PreparedSet.open(path) for path in sets])
        strips = []
        for label, title, tone in (
            (True, "Labelled keep, and look like discards", "discard"),
            (False, "Labelled discard, and look like keeps", "keep"),
        ):
            those = np.flatnonzero(keep == label)
            shown = [int(row) for row in those[:_SHOWN] if row in images]
            if shown:
                names = table["image"].take(shown).to_pylist()
                pixels = np.stack([images[row] for row in shown])
                note = (
                    f"{len(those):,} in all. The number is the first network's probability of keep."
                )
                strips.append(report.Strip(title, tone, pixels, score[shown], names, note))
        record = training_record(Path(ensemble))
        lead = (
            f"Of {n:,} labels {len(table):,} look wrong ({report.percent(len(table) / max(1, n))}): networks"
            " that were not trained on these images’ groups are sure of the other label. Some will be right"
            " and the networks wrong; a person can tell. Boosting left these images out, as it would"
            f" have learned them by heart. {TABLE} lists all, to be mended in the selection."
        )
        report.render(
            partial / REPORT,
            "Labels that look wrong",
            [
                report.summary_section(
                    lead,
                    {"ensemble": Path(ensemble).absolute()},
                    {TABLE: f"{len(table):,} rows"},
                    {"suspected labels": f"{len(table):,}", "labels": f"{n:,}"},
                ),
                *([report.gallery_section(strips, "Suspected labels")] if strips else []),
                *([report.curves_section(record)] if record.get("curves") else []),
                *([report.bound_section(_bound(record))] if record.get("bound") else []),
                report.provenance_section(report.command(), []),
            ],
        )
    return len(table)


def _pictures(table: pa.Table, sets: Sequence[PreparedSet]) -> dict[int, np.ndarray]:
    """float32 [box, box] by row of the table, of those first rows that a page shows."""
    keep = table["keep"].to_numpy(zero_copy_only=False)
    some = np.concatenate([np.flatnonzero(keep == label)[:_SHOWN] for label in (True, False)])
    wanted = {
        (project, image): int(row)
        for row, project, image in zip(
            some,
            table["project"].take(some).to_pylist(),
            table["image"].take(some).to_pylist(),
            strict=True,
        )
    }
    found: dict[int, np.ndarray] = {}
    for prepared in sets:
        projects, names = (prepared.table[c].to_pylist() for c in ("project", "image"))
        places = {
            wanted[key]: row
            for row, key in enumerate(zip(projects, names, strict=True))
            if key in wanted
        }
        if places:
            images = prepared.pictures(np.array(list(places.values())))
            found.update(zip(places, images, strict=True))
    return found


def _bound(record: object) -> dict[str, float | None]:
    assert isinstance(record, dict)
    return dict(record["bound"])


def _is_report(folder: Path) -> bool:
    return (folder / TABLE).is_file()
