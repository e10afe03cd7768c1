"""The labels that people gave a session's images, as tables that ``cryoray ingest --selection`` reads.

An image of the blind sample is never a training label: the sample judges ensembles, and what trained one
cannot judge it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from cryoray.session.ledger import Ledger

#: What makes a spreadsheet take a text for a formula.
_FORMULA = ("=", "+", "-", "@")
#: The first two name an image, the third is the label; the others are for people.
COLUMNS = ("stack", "index", "label", "before", "score", "who", "when")


def image_place(image: str, path: str) -> tuple[str, int]:
    """The stack and the number of an image, counted from 1: from its name, else ``path``'s first."""
    number, at, stack = image.partition("@")
    stack = stack if at else path
    # A spreadsheet would take the name for a formula; whoever reads a path takes both for the same.
    stack = f"./{stack}" if stack.startswith(_FORMULA) else stack
    return stack, int(number) if at and number.isdecimal() else 1


def overrides_csv(ledger: Ledger, session: str) -> str:
    """What people said against, or beside, the verdicts."""
    return _table(_override_row(row) for row in ledger.overrides(session))


def training_csv(ledger: Ledger, session: str) -> str:
    """The same without the images of the blind sample."""
    return _table(_override_row(row) for row in training_rows(ledger, session))


def training_rows(ledger: Ledger, session: str) -> list[Any]:
    """Overrides of images that are not in the blind sample, as the ledger has them."""
    blind = {(row.stack, row.row) for row in ledger.audit_sample(session)}
    return [row for row in ledger.overrides(session) if (row.stack, row.row) not in blind]


def audit_rows(ledger: Ledger, session: str) -> list[Any]:
    """The labelled images of the blind sample, as the ledger has them."""
    return [row for row in ledger.audit_sample(session) if row.keep is not None]


def audit_csv(
    ledger: Ledger, session: str, verdict_of: Callable[[Any], tuple[str, float] | None]
) -> str:
    """The labelled images of the blind sample, with the verdicts that nobody saw before.

    Args:
        ledger: of the session.
        session: its name.
        verdict_of: verdict and score of a row of the sample, None where they are not there now, or
            must not be shown yet.
    """
    rows = []
    for row in audit_rows(ledger, session):
        verdict, score = verdict_of(row) or ("", None)
        rows.append(
            (
                *image_place(row.image, row.path),
                int(row.keep),
                verdict,
                "" if score is None else f"{score:.6f}",
                row.who,
                _when(row.at),
            )
        )
    return _table(rows)


def _override_row(row: Any) -> tuple[object, ...]:
    score = f"{row.score:.6f}"
    return (
        *image_place(row.image, row.path),
        int(row.keep),
        row.before,
        score,
        row.who,
        _when(row.at),
    )


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _table(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        *place, who, when = row
        writer.writerow([*place, f"'{who}" if str(who).startswith(_FORMULA) else who, when])
    return text.getvalue()
