"""``cryoray-cryosparc``: particles of a cryoSPARC server judged as one of its External jobs.

It needs cryosparc-tools of the server's own version (4.1 and 5.0 do not speak to each other), which is no
dependency of cryoray, and a machine on which the project's folder has the path that the server knows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cryoray import terminal
from cryoray.cli import relion
from cryoray.errors import InputError, SettingsError
from cryoray.formats.names import VERDICTS_TABLE

if TYPE_CHECKING:
    from cryoray.settings import Settings

#: The outputs, by verdict; what could not be read has none.
OUTPUTS = {
    "keep": ("kept", "Particles kept"),
    "review": ("review", "Particles for a person to look at"),
    "discard": ("discarded", "Particles discarded"),
    None: ("unreadable", "Particles whose images could not be read"),
}
INPUT, TITLE = "particles", "cryoray: particles judged"
_EPILOG = """\
It makes an External job in the workspace, connects the particles, judges them, and saves what is kept,
under review, discarded and unreadable as outputs of it, which any job of cryoSPARC takes. An output
without particles is left out. The verdicts and their page are in the folder cryoray of the job's own.

Sign in beforehand with `python -m cryosparc.tools login`, or set CRYOSPARC_EMAIL and CRYOSPARC_PASSWORD.
"""


def main() -> NoReturn:
    """Entry point of the ``cryoray-cryosparc`` command."""
    try:
        given = _parser().parse_args(sys.argv[1:])
        job, rows, counts = work(given)
        print(f"{given.project} {job}: {terminal.balance(rows, counts)}", flush=True)
    except Exception as error:
        sentence, code = terminal.complaint(error)
        print(sentence, file=sys.stderr, flush=True)
        sys.exit(code)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = relion.Parser(
        prog="cryoray-cryosparc",
        description="Judge particles of a cryoSPARC server, as an External job of it.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("project", metavar="P3", help="project")
    add("workspace", metavar="W1", help="workspace in which the External job is made")
    add("job", metavar="J42", help="job that has the particles")
    add("output", metavar="particles", help="name of its output", nargs="?", default="particles")
    add("--server", metavar="URL", help="http://HOST:39000; else CRYOSPARC_BASE_URL")
    add("--ensemble", metavar="NAME|DIR", help="judge; else what is promoted or ships")
    add("--class-ensemble", metavar="NAME|DIR", help="judge of the particles' 2D classes")
    return parser


def work(given: argparse.Namespace) -> tuple[str, int, dict[str, int]]:
    """Judge, and save the outputs.

    Returns:
        the External job's uid, particles that were there, and how many each output of `OUTPUTS` has.

    Raises:
        SettingsError: there is no cryosparc-tools, or the server does not let us in.
        InputError: the project's folder is not on this machine.
    """
    from cryoray.settings import load

    judges = {"ensemble": given.ensemble, "class_ensemble": given.class_ensemble}
    settings = load(None, classify={name: value for name, value in judges.items() if value})
    server = connect(given.server)
    job = server.create_external_job(given.project, given.workspace, title=TITLE)
    job.connect(INPUT, given.job, given.output, slots=["blob"])
    with job.run():  # says it failed, and why, where something is raised
        return str(job.uid), *_judged(job, settings)


def connect(url: str | None) -> Any:
    """The server, by cryosparc-tools.

    Raises:
        SettingsError: it is not installed, or the server does not let us in.
    """
    try:
        from cryosparc.tools import CryoSPARC
    except ImportError:
        raise SettingsError(
            "cryosparc-tools is not installed",
            remedy="pip install 'cryosparc-tools~=5.0.0', with the version of your cryoSPARC",
        ) from None
    try:
        return CryoSPARC(url) if url else CryoSPARC()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingsError(
            str(error).split("\n\n")[0], remedy="give --server, and sign in (see --help)"
        ) from error


def _judged(job: Any, settings: Settings) -> tuple[int, dict[str, int]]:
    import numpy as np
    import pyarrow.parquet as pq

    from cryoray.verbs.classify import classify

    folder = Path(str(job.dir))
    if not folder.is_dir():
        raise InputError(
            "there is no such folder on this machine, and the job's images lie in its project",
            file=folder,
            remedy="run this where the project's folder has the path that cryoSPARC knows",
        )
    particles = job.load_input(INPUT)
    table = folder / "cryoray_particles.cs"
    particles.save(table)
    made = classify(table, folder / "cryoray", settings)
    verdicts = pq.read_table(made / VERDICTS_TABLE, columns=["uid", "verdict"])
    uid, verdict = verdicts["uid"].to_numpy(), verdicts["verdict"].to_numpy(zero_copy_only=False)
    known = np.asarray(particles["uid"])
    counts: dict[str, int] = {}
    for word, (name, title) in OUTPUTS.items():
        mine = ~np.isin(known, uid) if word is None else np.isin(known, uid[verdict == word])
        counts[name] = int(mine.sum())
        if counts[name]:
            job.add_output("particle", name, slots=["blob"], passthrough=INPUT, title=title)
            job.save_output(name, particles.mask(mine).filter_prefixes(["blob"]))
    job.log(f"cryoray: {terminal.balance(len(known), counts)}. See {made / 'report.html'}")
    return len(known), counts


if __name__ == "__main__":
    main()
