"""The application: global options, and what a person sees when something goes wrong."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cryoray.cli import (
    adapt,
    classify,
    cross_validate,
    doctor,
    evaluate,
    extract_picks,
    fetch,
    ingest,
    inspect,
    promote,
    select,
    serve,
    simulate,
    train,
    tune,
    validate,
    watch,
)
from cryoray.cli.common import Given, renamed
from cryoray.terminal import INTERRUPTED, complaints, err, out
from cryoray.version import __version__

app = typer.Typer(
    name="cryoray",
    help="Learn from past selections which cryo-EM particles to keep, and judge new ones live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"cryoray {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    ctx: typer.Context,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings, one section for each verb.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    ctx.obj = Given(settings, debug)


def _guarded(verb: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def run(ctx: typer.Context, **options: Any) -> None:
        try:
            with complaints(debug=ctx.obj.debug):
                verb(ctx, **options)
        except typer.Exit as ended:
            if ended.exit_code == INTERRUPTED:
                err.print(escape(_stopped(options.get("out"))), soft_wrap=True)
            raise

    return run


for verb in (
    simulate.simulate,
    fetch.fetch,
    extract_picks.extract_picks,
    ingest.ingest,
    inspect.inspect,
    train.train,
    tune.tune,
    evaluate.evaluate,
    cross_validate.cross_validate,
    adapt.adapt,
    classify.classify,
    select.select,
    serve.serve,
    watch.watch,
    promote.promote,
    doctor.doctor,
):
    app.command()(_guarded(verb))


def _old(name: str, new: str, verb: Callable[..., None]) -> None:
    """Keep a command's former name for one release, out of the help."""

    @functools.wraps(verb)
    def run(ctx: typer.Context, **options: Any) -> None:
        renamed(f"`cryoray {name}`", f"`cryoray {new}`")
        verb(ctx, **options)

    app.command(name, hidden=True)(_guarded(run))


_old("mine", "extract-picks", extract_picks.extract_picks)

_validate = typer.Typer(no_args_is_help=True)
app.add_typer(_validate, name="validate", help=validate.__doc__)
for part in (validate.fsc, validate.reconstruct, validate.similarity):
    _validate.command()(_guarded(part))


def _stopped(out: object) -> str:
    """What to say to somebody who stopped a command: what it leaves behind, and what that is good for."""
    left = [
        str(there)
        for suffix in (".partial", ".shards")
        if isinstance(out, Path) and (there := out.with_name(out.name + suffix)).exists()
    ]
    if not left:
        return "Stopped."
    return f"Stopped. {' and '.join(left)} stays: the same command goes on from there."


def main() -> None:
    """Entry point of the ``cryoray`` command."""
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            # Without waiting for threads and for Ray, whose processes end when this one does.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
