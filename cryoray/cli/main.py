"""The application: global options, and what a person sees when something goes wrong."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cryoray import __version__
from cryoray.cli import classify, doctor, evaluate, ingest, inspect, serve, simulate, train
from cryoray.cli.common import Given, err, out
from cryoray.errors import CryorayError, InternalError

#: Disks that are full or closed are not our fault.
_OUTSIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

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
    """Turn what a verb raises into one sentence on stderr and the exit code of the contracts."""

    @functools.wraps(verb)
    def run(ctx: typer.Context, **options: Any) -> None:
        try:
            verb(ctx, **options)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if ctx.obj.debug:
                raise
            sentence, code = _sentence(error)
            err.print(f"[red]{escape(sentence)}[/]", soft_wrap=True)
            raise typer.Exit(code) from error

    return run


def _sentence(error: BaseException) -> tuple[str, int]:
    """What to say about an error, and the exit code.

    An error of ours that a Ray worker raised arrives wrapped, so the chain of causes is searched.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CryorayError) and not isinstance(cause, InternalError):
            return str(cause), cause.exit_code
        cause = getattr(cause, "cause", None) or cause.__cause__
    if isinstance(error, OSError) and error.errno in _OUTSIDE:
        return (
            f"{error.filename or 'disk'}: {error.strerror}; choose another folder or make room.",
            2,
        )
    return (
        f"This is our fault, not yours: {type(error).__name__}: {error}. "
        "Please report it with what `cryoray --debug …` prints."
    ), 1


for verb in (
    simulate.simulate,
    ingest.ingest,
    inspect.inspect,
    train.train,
    evaluate.evaluate,
    classify.classify,
    serve.serve,
    doctor.doctor,
):
    app.command()(_guarded(verb))


def main() -> None:
    """Entry point of the ``cryoray`` command."""
    app()


if __name__ == "__main__":
    main()
