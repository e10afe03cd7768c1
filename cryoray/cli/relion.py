"""How a program behaves that RELION runs: exit files, aborts, output nodes, and options it may not know."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

from cryoray import terminal

#: Names, and exit codes, of RELION's pipeline_control.cpp.
SUCCESS, FAILURE, ABORTED, ABORT_NOW = (
    "RELION_JOB_EXIT_SUCCESS",
    "RELION_JOB_EXIT_FAILURE",
    "RELION_JOB_EXIT_ABORTED",
    "RELION_JOB_ABORT_NOW",
)
_CODES = {SUCCESS: 0, FAILURE: 1, ABORTED: 2}
NODES = "RELION_OUTPUT_NODES.star"
#: Seconds between looks for an abort, and until work that has not stopped is told to again.
_LOOK, _AGAIN = 0.5, 20.0
#: What a node is, in the dialects of a pipeline: a number to RELION 3.1, a label to 4 and 5, of which some
#: versions of 4 have older ones (pipeline_jobs.h: NODE_PART_DATA, NODE_2DREFS; LABEL_SELECT_PARTS,
#: LABEL_SELECT_CLAVS).
_NODE_TYPES = {
    "numbers": {"particles": "3", "classes": "5"},
    "older labels": {
        "particles": "ParticlesData.star.relion",
        "classes": "ImagesData.star.relion.classaverages",
    },
    "labels": {
        "particles": "ParticleGroupMetadata.star.relion",
        "classes": "Image2DGroupMetadata.star.relion.classaverages",
    },
}
#: How the older labels begin; those that have changed.
_OLDER = (
    "ParticlesData.",
    "MicrographsData.",
    "MicrographMoviesData.",
    "ImagesData.",
    "ProcessData.",
)


class Parser(argparse.ArgumentParser):
    """Options as RELION gives them: in full, never abbreviated."""

    def __init__(self, **keywords: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **keywords,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving, so that the job gets its exit file."""
        from cryoray.errors import SettingsError

        raise SettingsError(message, remedy=f"see `{self.prog} --help`")


def say(text: str) -> None:
    """A line to stdout, which RELION keeps in the job's ``run.out``."""
    print(text, flush=True)


def run(work: Callable[[Sequence[str]], None], control: Sequence[str]) -> NoReturn:
    """Do the work of this process's command line and leave as RELION's programs do.

    The job's folder is what is given with the first of the options ``control`` that is there; without
    any there are no exit files. Older ones are removed first. ``RELION_JOB_ABORT_NOW`` in the folder stops
    the work, and is removed when it is obeyed.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help", "--version"} & set(arguments):
        work(arguments)
        sys.exit(0)
    folder = _folder(arguments, control)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SUCCESS, FAILURE, ABORTED):
            (folder / name).unlink(missing_ok=True)
    try:
        fate = _fate(lambda: work(arguments), folder)
    except KeyboardInterrupt:
        fate = ABORTED
    if folder:
        if fate == ABORTED:
            (folder / ABORT_NOW).unlink(missing_ok=True)
        (folder / fate).touch()
    sys.exit(_CODES[fate])


def _folder(arguments: Sequence[str], options: Sequence[str]) -> Path | None:
    for option in options:
        with suppress(ValueError, IndexError):
            return Path(arguments[arguments.index(option) + 1]).absolute()
    return None


def _fate(work: Callable[[], None], folder: Path | None) -> str:
    done = threading.Event()
    # A shell starts what runs in the background with interrupts ignored, and so does RELION's GUI.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if folder:
        threading.Thread(target=_watch, args=(folder / ABORT_NOW, done), daemon=True).start()
    try:
        work()
        return SUCCESS
    except Exception as error:
        if folder and (folder / ABORT_NOW).exists():
            return ABORTED  # what is interrupted may fail in its own way
        sentence, _ = terminal.complaint(error)
        print(sentence, file=sys.stderr, flush=True)
        return FAILURE
    finally:
        done.set()
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _watch(asked: Path, done: threading.Event) -> None:
    while not done.wait(_LOOK):
        if asked.exists():
            print(f"{asked} was found: stopping.", file=sys.stderr, flush=True)
            ident = threading.main_thread().ident
            if ident is not None:
                signal.pthread_kill(ident, signal.SIGINT)
            done.wait(_AGAIN)


def write_nodes(out: Path, given: str, files: Iterable[tuple[str, str]]) -> None:
    """Write ``RELION_OUTPUT_NODES.star``: what the pipeline may give to other jobs.

    It is in the dialect of the project's ``default_pipeline.star``: RELION 3.1 knows only numbers, 4 and
    5 know labels, and 4 began with others.

    Args:
        out: the job's folder.
        given: its name as RELION gave it, relative to the project.
        files: name in the folder and type (``particles``, ``classes``) of each.
    """
    from cryoray.formats.files import replacing

    dialect = _dialect(out)
    types = _NODE_TYPES[dialect]
    lines = [f"{os.path.join(given, name)} {types[kind]}" for name, kind in files]  # noqa: PTH118
    column = "_rlnPipeLineNodeType" if dialect == "numbers" else "_rlnPipeLineNodeTypeLabel"
    head = ["", "# version 30001", "", "data_output_nodes", "", "loop_"]
    text = "\n".join([*head, "_rlnPipeLineNodeName #1", f"{column} #2", *lines, "", ""])
    with replacing(out / NODES) as temporary:
        temporary.write_text(text)


def _dialect(out: Path) -> Literal["numbers", "older labels", "labels"]:
    """Of the pipeline of the project that a job's folder is in."""
    from cryoray.errors import FormatError
    from cryoray.formats.star import parse

    column = "rlnPipeLineNodeTypeLabel"
    for folder in out.absolute().parents:
        pipeline = folder / "default_pipeline.star"
        if pipeline.is_file():
            with suppress(FormatError):
                tables = parse(pipeline).blocks
                columns = {name for table in tables for name in table.columns}
                if not columns & {column, "rlnPipeLineProcessTypeLabel"}:
                    return "numbers"
                nodes = (table.column(column) for table in tables if column in table.columns)
                labels = [label for found in nodes for label in found.tolist()]
                older = any(label.startswith(_OLDER) for label in labels)
                newer = any("GroupMetadata." in label for label in labels)
                return "older labels" if older and not newer else "labels"
    return "labels"
