"""What is saved of a selection: both sides in the source's format, RELION's Select files, CSVs of labels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cryoray.boosting.expected import OPEN
from cryoray.errors import InternalError, printable
from cryoray.formats.class_selection import is_model, write_class_selection
from cryoray.formats.files import check_replaceable, check_same, replacing_folder, write_csv
from cryoray.formats.verdicts import write_verdicts
from cryoray.select.selection import Selection

RECORD = "selection.json"
#: Every image with its label, for `ingest --selection`; and those that the person turned, for `adapt`.
LABELS, TURNED = "selection.csv", "turned.csv"
_WHAT = "folder of a selection"


def check(out: Path, verdicts: Path, *, replace: bool = False) -> None:
    """Refuse a folder that is not ours to replace, before anything is done.

    Args:
        out: folder that is saved in.
        verdicts: folder of those that the selection is made on.
        replace: whether it may hold a selection on others.

    Raises:
        InputError: it is something else, or a selection that a person made on other verdicts.
    """
    check_replaceable(out, _WHAT, _is_one)
    if (record := saved(out)) is not None:
        before = {"folder of verdicts": [str(record["verdicts"])]} if "verdicts" in record else {}
        now = {"folder of verdicts": [str(verdicts)]}
        check_same(out, "selection", before, now, replace=replace)


def save(selection: Selection, out: Path) -> dict[str, Any]:
    """Write the selection as it stands; the folder appears, or replaces an older one, when it is complete.

    Of a RELION model of classes there are ``backup_selection.star``, ``class_averages.star`` and, where
    the particles are beside it, ``particles.star``; of cryoSPARC's tables the groups of both sides. What
    is under review and nobody turned is where the line puts it.

    Returns:
        what ``selection.json`` holds: counts, the line, what may be expected, and the files.

    Raises:
        InputError: ``out`` is something else.
        FormatError: the source is gone or changed.
    """
    state, revision = selection.clicks.state, selection.clicks.revision
    table, keep = selection.table, selection.keep(state)
    with replacing_folder(out, _WHAT, _is_one) as partial:
        counts = write_verdicts(partial, table.source, selection.verdicts(state))
        if counts.rows_in != counts.rows_out + counts.quarantined:
            raise InternalError(f"the row counts do not balance: {counts}")
        particles = None
        if is_model(table.source):
            of_job = np.zeros(len(table.source), bool)
            of_job[table.verdicts.rows] = keep
            particles = write_class_selection(partial, table.source, of_job)
        everything = np.arange(len(table))
        write_csv(
            partial / LABELS, ("stack", "index", "label"), _labels(selection, everything, keep)
        )
        turned = np.flatnonzero(state.turned != OPEN)
        write_csv(partial / TURNED, ("stack", "index", "label"), _labels(selection, turned, keep))
        record = {
            "source": printable(table.source.path),
            "verdicts": printable(table.folder),
            "revision": revision,
            "at": time.time(),
            "rows_in": counts.rows_in,
            "kept": int(keep.sum()),
            "discarded": int((~keep).sum()),
            "quarantined": counts.quarantined,
            "particles": particles,
            "turned": len(turned),
            "line": selection.line(state),
            "policy": selection.policy(state),
            "change": {"stretch": state.stretch, "shift": state.shift},
            "expected": asdict(selection.expected(state)),
        }
        files = sorted([one.name for one in partial.iterdir()] + [RECORD])
        (partial / RECORD).write_text(json.dumps({**record, "files": files}, indent=1) + "\n")
    return {**record, "files": files, "folder": printable(out)}


def saved(out: Path) -> dict[str, Any] | None:
    """What was saved last, None where nothing was."""
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return {**record, "folder": printable(out)}


def _labels(
    selection: Selection, places: np.ndarray, keep: np.ndarray
) -> Iterator[tuple[str, int, int]]:
    """Stack, number in it from 1, and label of some images."""
    source = selection.table.source
    rows = selection.table.verdicts.rows[places]
    names = [str(one) for one in source.stacks]
    for stack, frame, label in zip(
        source.stack[rows].tolist(), source.frame[rows].tolist(), keep[places].tolist(), strict=True
    ):
        yield names[stack], frame + 1, int(label)


def _is_one(folder: Path) -> bool:
    return (folder / RECORD).is_file()
