"""What a verb says while it works, as Prefect keeps it: progress artifacts, events and log lines."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event

from cryoray.formats.names import REPORT
from cryoray.records import Event, Progress
from cryoray.terminal import Show

if TYPE_CHECKING:
    from uuid import UUID

#: Seconds between two updates of one artifact: each is a request to Prefect's server.
_EVERY = 2.0


class Reporter:
    """Callbacks for a verb inside a task: bars on the terminal, artifacts and events in Prefect.

    Args:
        subject: what the events are about, e.g. ``set`` or ``ensemble``.
        run: what tells this run's artifacts from those of others, as the name of what it makes.
    """

    def __init__(self, subject: str, run: str = "") -> None:
        self._subject, self._run = subject, run
        self._show = Show()
        self._artifacts: dict[str, tuple[UUID, float]] = {}

    def __enter__(self) -> Reporter:
        self._log = get_run_logger()
        self._show.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show.__exit__(kind, error, trace)

    def progress(self, now: Progress) -> None:
        """Move the bar, and the artifact where it is time or the stage is done."""
        self._show.progress(now)
        percent = 100.0 * now.done / now.total if now.total else 0.0
        known, updated = self._artifacts.get(now.stage, (None, 0.0))
        if known is None:
            made = cast(
                "UUID",
                create_progress_artifact(percent, key(f"{now.stage}-{self._run}"), summary(now)),
            )
            self._artifacts[now.stage] = (made, time.monotonic())
        elif percent >= 100.0 or time.monotonic() - updated >= _EVERY:
            update_progress_artifact(known, percent, summary(now))
            self._artifacts[now.stage] = (known, time.monotonic())

    def event(self, happened: Event) -> None:
        """Log it, and emit it for automations."""
        self._log.info("%s %s", happened.name, dict(happened.data))
        emit_event(
            f"cryoray.{happened.name}",
            resource={"prefect.resource.id": f"cryoray.{self._subject}"},
            payload=dict(happened.data),
        )


def summary(now: Progress) -> str:
    """The stage, how much of it is done, and what else its verb says of it, as GB/s and time left."""
    total = "" if now.total is None else f" of {now.total:,}"
    return f"{now.stage}: {now.done:,}{total} {now.unit}" + (f"; {now.note}" if now.note else "")


def link_report(kind: str, folder: Path) -> None:
    """Keep a link to the report of a run, where it wrote one: to its ``report.html``."""
    page = folder.absolute() / REPORT
    if page.is_file():
        create_link_artifact(
            page.as_uri(),
            link_text=f"report of {folder.name}",
            key=key(f"report-{kind}-{run_of(folder)}"),
            description=str(page),
        )


def run_of(out: Path) -> str:
    """What tells the artifacts of a run from those of others: its output's name, and the folder's above.

    Names such as ``set`` are the same in every project.
    """
    return "-".join(Path(out).absolute().parts[-2:])


def key(text: str) -> str:
    """The text as a key of an artifact: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
