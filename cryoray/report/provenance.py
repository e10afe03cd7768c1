"""Where a page comes from: what went in and what came out, the command, versions, settings and digests."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel

from cryoray.report.blocks import Block, Facts, Headline, Section

#: Programs whose versions a reader may need to repeat the run.
PROGRAMS = ("cryoray", "torch", "ray", "numpy", "prefect")


def summary_section(
    lead: str,
    went_in: Mapping[str, object],
    came_out: Mapping[str, object],
    numbers: Mapping[str, str] | None = None,
) -> Section:
    """The head of a page: what this is, the few numbers that matter, what went in and what came out.

    Args:
        lead: one or two sentences.
        went_in: name to value.
        came_out: name to value, the files among them.
        numbers: what it is, to the value as it shall be shown.
    """
    blocks: list[Block] = []
    if numbers:
        blocks.append(Headline(tuple((value, name) for name, value in numbers.items())))
    for title, facts in (("Went in", went_in), ("Came out", came_out)):
        blocks.append(Facts(tuple((name, str(value)) for name, value in facts.items()), title))
    return Section("Summary", blocks, lead)


def command() -> str:
    """What was typed, as it can be typed again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["cryoray" if program.endswith(".py") else program, *sys.argv[1:]])


def provenance_section(
    command: str,
    settings: Sequence[BaseModel],
    digests: Mapping[str, str] | None = None,
) -> Section:
    """How to get this again: command, versions, digests, and every setting that was in force.

    Args:
        command: as a person would type it.
        settings: the sections of settings in force; what is kept from ``repr`` (tokens) stays out.
        digests: of what went in and came out.
    """
    versions = [f"Python {platform.python_version()}"]
    for program in PROGRAMS:
        try:
            versions.append(f"{program} {metadata.version(program)}")
        except metadata.PackageNotFoundError:  # a machine with torch alone has no ray
            continue
    pairs = [
        ("command", command),
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("machine", f"{platform.system()} {platform.machine()}"),
        ("versions", ", ".join(versions)),
        *(digests or {}).items(),
    ]
    flat = [pair for model in settings for pair in _flat(model)]
    return Section("How this was made", [Facts(tuple(pairs)), Facts(tuple(flat), code=True)])


def _flat(model: BaseModel, prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            pairs += _flat(value, f"{prefix}{name}.")
        elif field.repr:
            pairs.append((f"{prefix}{name}", _setting(value)))
    return pairs


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
