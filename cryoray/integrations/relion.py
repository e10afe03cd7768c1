"""RELION driven through its own pipeline, so that a person can open the project and go on by hand.

A job is written as a ``job.star``, added and run by ``relion_pipeliner``, which keeps the
project's ``default_pipeline.star``, the job's folder, its ``note.txt`` and exit files, as RELION's window
does. A job of the same type and options that ended well is not run again, whoever ran it; one that still
runs here, since RELION's programs outlive who began them, is waited for. RELION leaves out of its own
``job.star`` any option that it does not know (each version has others), with exit code 0: such options
are named, and jobs are compared without them.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryoray.errors import CryorayError, FormatError, InputError, SettingsError
from cryoray.formats import rln
from cryoray.formats.files import replacing
from cryoray.formats.relion import VERSION, loop, quoted
from cryoray.formats.star import StarFile, parse

_log = logging.getLogger(__name__)

PIPELINE = "default_pipeline.star"
SUCCESS = "RELION_JOB_EXIT_SUCCESS"
#: Begins the name of every file by which a job says that it is over.
_OVER = "RELION_JOB_EXIT_"
#: A job type's number in RELION 3.1 and label in 4 and 5 (pipeline_jobs.h), by the name of its folder.
_TYPES: Mapping[str, tuple[int, str]] = {
    "Import": (0, "relion.import.other"),
    "Extract": (5, "relion.extract"),
    "Class2D": (8, "relion.class2d.em"),
    "Class3D": (9, "relion.class3d"),
    "Refine3D": (10, "relion.refine3d"),
    "MaskCreate": (12, "relion.maskcreate"),
    "PostProcess": (15, "relion.postprocess"),
    "InitialModel": (18, "relion.initialmodel"),
    "External": (99, "relion.external"),
}
#: Options that name a file of the project.
_INPUTS = ("fn_img", "fn_ref", "fn_in", "fn_mask", "in_part", "star_mics", "fndata_reextract")
#: Lines of a failed job's output that are shown.
_SHOWN = 12
#: Seconds between two looks at whether a job still runs.
_LOOK = 1.0


class RelionError(CryorayError):
    """A job of RELION's failed; the message is RELION's own."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that ended well.

    Attributes:
        project: RELION's project folder.
        name: relative to it, ``Class2D/job002``.
        skipped: whether it had been done, or begun, before.
        dropped: options that it was to have and this RELION does not know.
    """

    project: Path
    name: str
    skipped: bool
    dropped: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Absolute."""
        return self.project / self.name

    @property
    def seconds(self) -> float | None:
        """From the note that RELION writes at a job's start to its exit file; None where one is gone."""
        with suppress(OSError):
            note, end = ((self.folder / file).stat() for file in ("note.txt", SUCCESS))
            return max(end.st_mtime - note.st_mtime, 0.0)
        return None

    def file(self, pattern: str) -> str:
        """The last file of the job, by name, that a pattern matches; relative to the project.

        Raises:
            InputError: there is none.
        """
        found = sorted(self.folder.glob(pattern))
        if not found:
            raise InputError(
                f"the job wrote no {pattern}",
                file=self.folder,
                remedy="look at its run.out, remove the job and run again",
            )
        return found[-1].relative_to(self.project).as_posix()


class Relion:
    """The RELION on the PATH, at work in one project folder.

    Args:
        project: made a project where it is none yet.

    Raises:
        SettingsError: there is no RELION.
    """

    def __init__(self, project: Path) -> None:
        self.project = Path(project).absolute()
        self.version = version()
        pipeline = self.project / PIPELINE
        if not pipeline.is_file():
            # Stacks that came without their pipeline lie in jobs' folders, too: none may be written over.
            found = (re.fullmatch(r"job(\d+)", job.name) for job in self.project.glob("*/job*"))
            counter = 1 + max((int(number[1]) for number in found if number), default=0)
            text = f"data_pipeline_general\n\n_rlnPipeLineJobCounter {counter}\n\n"
            with replacing(pipeline) as temporary:
                temporary.write_bytes(VERSION + text.encode())

    def run(self, kind: str, options: Mapping[str, str]) -> Job:
        """Run a job, unless one of this type and these options ended well, or runs here and then does.

        Args:
            kind: the name of the type's folder, ``Class2D``.
            options: as RELION's ``job.star`` names them; the others are RELION's defaults.

        Raises:
            InputError: a file that it is given is not there, or the job's folder is.
            RelionError: it failed.
        """
        done = self.done(kind, options) or self._waited(kind, options)
        if done is not None:
            return Job(self.project, done, skipped=True, dropped=self._dropped(done, options))
        for name, value in options.items():  # RELION would wait for them for ever
            if name in _INPUTS and value and not (self.project / value).exists():
                raise InputError(
                    f"there is no such file, which {kind} is to be given as {name}",
                    file=self.project / value,
                    remedy="do the stage before again",
                )
        name = f"{kind}/job{self._counter():03d}"
        if (self.project / name).exists():
            raise InputError(
                f"is there, though RELION's pipeline counts its next job as {name}",
                file=self.project / name,
                remedy=f"rename it, or set rlnPipeLineJobCounter in {PIPELINE} beyond all jobs",
            )
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "job.star"
            wanted.write_bytes(self._job_star(kind, options))
            output = self._pipeliner("--addJobFromStar", str(wanted))
        if not (self.project / name / "job.star").is_file():
            raise RelionError(f"RELION did not take the job {name}: {_end(output)}")
        dropped = self._dropped(name, options)
        if dropped:
            _log.warning(
                "%s: RELION %s has no option %s, so the job runs without",
                name,
                ".".join(map(str, self.version)),
                ", ".join(dropped),
            )
        output = self._pipeliner(
            *("--RunJobs", f"{name}/", "--schedule", f"cryoray-{os.getpid()}"),
            *("--sec_wait_after", "0"),
        )
        if not (self.project / name / SUCCESS).is_file():
            raise RelionError(
                f"{name} failed; RELION reported: {self._complaint(name) or _end(output)}"
            )
        return Job(self.project, name, skipped=False, dropped=dropped)

    def done(self, kind: str, options: Mapping[str, str]) -> str | None:
        """The name of the last job of this type and these options that ended well."""
        alike = self._alike(kind, options)
        return next((job for job in alike if (self.project / job / SUCCESS).is_file()), None)

    def _alike(self, kind: str, options: Mapping[str, str]) -> Iterator[str]:
        """Names of the jobs of this type and these options, the last first.

        Options that RELION dropped from its ``job.star`` made no difference to the job.
        """
        for folder in sorted((self.project / kind).glob("job*"), reverse=True):
            had = options_of(folder / "job.star")
            if had and all(had.get(name, value) == value for name, value in options.items()):
                yield f"{kind}/{folder.name}"

    def _dropped(self, job: str, options: Mapping[str, str]) -> tuple[str, ...]:
        """The options that are not in the ``job.star`` that RELION wrote of them."""
        had = options_of(self.project / job / "job.star")
        return tuple(name for name in options if name not in had)

    def _waited(self, kind: str, options: Mapping[str, str]) -> str | None:
        """`done`, once no job of this type and these options runs on this machine any more.

        A flow that is stopped, or dies, leaves RELION's program to itself, for hours.
        """
        for job in self._alike(kind, options):
            while self._runs(job):
                time.sleep(_LOOK)
        return self.done(kind, options)

    def _runs(self, job: str) -> bool:
        """Whether a job is not over, and a process of this machine, in the project, has its name."""
        if any((self.project / job).glob(f"{_OVER}*")):
            return False
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended, or is another person's
                words = (process / "cmdline").read_bytes().split(b"\0")
                if f"{job}/".encode() in words and (process / "cwd").samefile(self.project):
                    return True
        return False

    def _counter(self) -> int:
        table = parse(self.project / PIPELINE)["pipeline_general"]
        return int(table.fields(0)[table.columns.index("rlnPipeLineJobCounter")])

    def _job_star(self, kind: str, options: Mapping[str, str]) -> bytes:
        number, label = _TYPES[kind]
        known = f"_rlnJobTypeLabel {label}" if self.version >= (4,) else f"_rlnJobType {number}"
        head = f"data_job\n\n{known}\n_rlnJobIsContinue 0\n"
        if self.version >= (4,):
            head += "_rlnJobIsTomo 0\n"
        rows = [
            [name, quoted(value) if '"' in value else f'"{value}"']
            for name, value in options.items()
        ]
        values = loop("joboptions_values", [rln.JOB_OPTION_VARIABLE, rln.JOB_OPTION_VALUE], rows)
        return VERSION + head.encode() + VERSION + values

    def _pipeliner(self, *arguments: str) -> str:
        done = subprocess.run(
            ["relion_pipeliner", *arguments],
            cwd=self.project,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        return done.stdout

    def _complaint(self, name: str) -> str:
        """The end of what a job wrote to ``run.err``, or ``run.out`` where that is empty."""
        for file in ("run.err", "run.out"):
            path = self.project / name / file
            if path.is_file() and (text := path.read_text(errors="replace").strip()):
                return _end(text)
        return ""


def version() -> tuple[int, ...]:
    """Of the RELION on the PATH, as ``(3, 1, 3)``.

    Raises:
        SettingsError: there is none.
    """
    for program in ("relion_pipeliner", "relion_refine"):
        if shutil.which(program) is None:
            raise SettingsError(
                f"{program} is not on the PATH",
                remedy="install RELION 3.1 or newer, or load its module",
            )
    output = subprocess.run(
        ["relion_refine", "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"RELION version: v?(\d+)\.(\d+)(?:\.(\d+))?", output.stdout + output.stderr)
    if not found:
        raise SettingsError("relion_refine does not print its version", remedy="install it again")
    return tuple(int(part) for part in found.groups() if part)


def _environment() -> dict[str, str]:
    """For MPI: more processes than cores where a refinement needs them, and root where root calls."""
    also = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}
    if os.geteuid() == 0:
        also |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**also, **os.environ}


def options_of(job: Path) -> dict[str, str]:
    """The options in a ``job.star``; none where it cannot be read."""
    with suppress(FormatError, OSError):
        star: StarFile = parse(job)
        table = star["joboptions_values"]
        names = table.column(rln.JOB_OPTION_VARIABLE).tolist()
        return dict(zip(names, table.column(rln.JOB_OPTION_VALUE).tolist(), strict=True))
    return {}


def _end(text: str) -> str:
    """The last lines of a program's output, without its backtrace and bars."""
    lines = (line.split("\r")[-1].strip() for line in text.splitlines())
    plain = (line for line in lines if line and not re.match(r"\S*\(.*\) \[0x|=+$|/lib/", line))
    return " / ".join(deque(plain, _SHOWN))
