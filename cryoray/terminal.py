"""The terminal: complaints in one sentence, bars, tables, and what became of the rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from cryoray.errors import FULL, CryorayError, InternalError, causes, missing, not_ours, printable

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID

    from cryoray.records import Event, Progress, RowCounts

#: Results go to stdout, where scripts read them; bars and complaints to stderr.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

#: Exit code of a command that a person stopped (128 + SIGINT).
INTERRUPTED = 130


@contextmanager
def complaints(*, debug: bool) -> Iterator[None]:
    """Turn what is raised inside into one sentence on stderr and its exit code (`cryoray.errors`)."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        if debug:
            raise
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        sentence, code = complaint(error)
        err.print(f"[red]{escape(sentence)}[/]", soft_wrap=True)
        raise typer.Exit(code) from error


def complaint(error: BaseException) -> tuple[str, int]:
    """What to say about an error, and the exit code.

    What a Ray worker raised arrives wrapped, so the chain of causes is searched.
    """
    for cause in causes(error):
        if not_ours(cause):
            return _sentence(cause)
    return (
        f"This is our fault, not yours: {type(error).__name__}: {error}. "
        "Please report it, with what the same command prints with --debug.",
        1,
    )


def _sentence(error: BaseException) -> tuple[str, int]:
    if isinstance(error, ModuleNotFoundError):
        error = missing(error)
    if isinstance(error, CryorayError):
        return str(error), error.exit_code
    assert isinstance(error, OSError)
    assert error.errno is not None
    remedy = "choose another folder"
    if error.errno in FULL:
        remedy = f"make room and give the same command again, or {remedy}"
    return f"{error.filename or 'the disk'}: {os.strerror(error.errno)}; {remedy}.", 2


class Show:
    """One bar for each stage, while the block lasts; a verb takes ``progress`` and ``event``.

    Args:
        words: an event as a person reads it, None where the terminal need not show it; without, each is
            shown by its name and data.

    Attributes:
        events: what happened.
    """

    def __init__(self, words: Callable[[Event], str | None] | None = None) -> None:
        self._words = words
        self.events: list[Event] = []
        self._bars = Bars(
            TextColumn("{task.description:<26}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=err,
        )
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> Show:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def progress(self, now: Progress) -> None:
        """Move the bar of this stage, drawing it where it is new."""
        if now.stage not in self._stages:
            self._stages[now.stage] = self._bars.add_task(
                now.stage, total=now.total, unit="", note=""
            )
        self._bars.update(
            self._stages[now.stage],
            completed=now.done,
            total=now.total,
            unit=now.unit,
            note=now.note,
        )

    def event(self, happened: Event) -> None:
        """Print one dim line above the bars."""
        self.events.append(happened)
        if self._words is not None:
            if (sentence := self._words(happened)) is not None:
                self._bars.console.print(escape(printable(sentence)), style="dim", soft_wrap=True)
            return
        data = " ".join(f"{key}={text(value)}" for key, value in happened.data.items())
        self._bars.console.print(escape(f"{happened.name} {data}"), style="dim", soft_wrap=True)


def table(title: str, rows: Mapping[str, object]) -> Table:
    """A table of names and values; numbers in the way people read them."""
    made = Table(title=title, title_justify="left", show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in rows.items():
        made.add_row(escape(name), escape(text(value)))
    return made


def text(value: object) -> str:
    """A number with separators or four digits; everything else as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or "–"
    return str(value)


def finish(title: str, rows: Mapping[str, object], row_counts: RowCounts | str) -> None:
    """The end of a verb: its summary, and what became of the rows that went in."""
    out.print(table(title, rows))
    out.print(str(row_counts))


def balance(rows_in: int, fates: Mapping[str, int]) -> str:
    """What became of the rows of a verb that quarantines none: each has one of the fates.

    Raises:
        InternalError: rows are unaccounted for.
    """
    line = f"{rows_in:,} rows in = " + " + ".join(
        f"{count:,} {fate}" for fate, count in fates.items()
    )
    if rows_in != sum(fates.values()):
        raise InternalError(f"the row counts do not balance: {line}")
    return line
