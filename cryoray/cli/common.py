"""What the commands share: the options before the verb, and settings as given."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from pathlib import Path

    from cryoray.settings import Settings


#: Of every command whose folder takes the place of an older one.
Replace = Annotated[
    bool | None,
    typer.Option("--replace", help="Replace what DIR holds, also of other input."),
]


@dataclass(frozen=True, slots=True)
class Given:
    """The options that stand before the verb."""

    settings: Path | None = None
    debug: bool = False


def settings(ctx: typer.Context, **overrides: Any) -> Settings:
    """Settings of this call: what was given on the command line over variables and file."""
    from cryoray.settings import load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        loaded = load(ctx.obj.settings, **_given(overrides))
    for former in dict.fromkeys(str(one.message) for one in caught):
        warn(former)
    return loaded


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what was not given (None), so that it overrides nothing."""
    nested = {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def renamed(old: str, new: str) -> None:
    """Say what to use in place of a name that still works in this release."""
    warn(f"{old} is now {new}; the old name goes with the next release")


def warn(sentence: str) -> None:
    """Print a sentence, given without its full stop, on stderr, in yellow."""
    from cryoray import terminal

    terminal.err.print(f"[yellow]{escape(sentence)}.[/]", soft_wrap=True)


def names(given: list[str] | None) -> tuple[str, ...] | None:
    """Names as an option takes them: repeated or comma separated; ``none`` is the empty choice."""
    if not given:
        return None
    found = tuple(name.strip() for part in given for name in part.split(",") if name.strip())
    return () if found == ("none",) else found
