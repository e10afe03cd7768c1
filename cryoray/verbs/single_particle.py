"""From particles to a refined map: the stages, what each is given, and what each saves a person.

Every stage is one job of RELION's pipeline; its options are those of RELION's job window. What
`settings.workflow.options` says of a stage replaces them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from cryoray.boosting.within_job import review_band
from cryoray.errors import InputError, SettingsError
from cryoray.formats import rln
from cryoray.formats.files import check_same, replacing
from cryoray.formats.mrc import read_header
from cryoray.formats.names import PROFILE, REPORT, VERDICTS_TABLE
from cryoray.formats.relion import project
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.volume import read_volume
from cryoray.integrations.extraction import (
    Micrographs,
    MissingMicrographsError,
    extractable,
    read_micrographs,
    write_some,
)
from cryoray.integrations.relion import Job, Relion, options_of
from cryoray.maps.fsc import automatic_mask
from cryoray.models.ensemble import Ensemble
from cryoray.models.profile import Profile
from cryoray.models.registry import resolve
from cryoray.report.workflow import ASKED, WorkflowPage
from cryoray.settings import Settings

#: In order; in the arm without cryoray those named `select` are left out.
STAGES = (
    "import",
    "class2d",
    "select2d",
    "reextract",
    "initial",
    "class3d",
    "select3d",
    "refine",
    "mask",
    "postprocess",
)
FOLDER = "cryoray_workflow"
#: Of the Extract job that particles come from, what holds for them when they are extracted again.
_AS_BEFORE = ("do_invert", "do_norm", "white_dust", "black_dust", "do_float16")


@dataclass(frozen=True, slots=True)
class Done:
    """A stage that was gone through.

    Attributes:
        stage: of `STAGES`.
        job: its folder, relative to the project.
        seconds: it took, in this run or an earlier one; None where RELION's files do not tell.
        particles: that it worked on, or was left with.
        skipped: whether it had been done before.
    """

    stage: str
    job: str
    seconds: float | None
    particles: int
    skipped: bool = False


class Workflow:
    """The stages of one project.

    Args:
        particles: a STAR file of extracted particles, whose image names are relative to RELION's project
            folder: the nearest above it with a pipeline, else its own.
        settings: ``workflow`` and ``classify`` are used.

    Raises:
        InputError: the particles cannot be read, or the project is not where their images are, or the
            micrographs that are given are not there.
        SettingsError: there is no RELION, or the box to extract suits neither particles nor micrographs.
    """

    def __init__(self, particles: Path, settings: Settings) -> None:
        self.particles = Path(particles).absolute()
        source = open_source(self.particles)
        folder = project(self.particles.parent) or self.particles.parent
        if not (folder / str(source.images[0]).rpartition("@")[2]).exists():
            raise InputError(
                f"names images that are not there from RELION's project folder {folder}",
                file=self.particles,
                row=1,
                remedy="put it into the project folder that its image names are relative to",
            )
        self.relion = Relion(folder)
        self.project = folder
        self.settings = settings
        self.chosen = settings.workflow
        self.total = len(source)
        self.box, pixel = read_header(source.stacks[0]).width, float(source.pixel_size[0])
        if not pixel > 0:
            raise InputError("has no pixel size", file=self.particles, remedy="import it with one")
        self.pixel_size = pixel
        self.diameter = self.chosen.diameter or round(0.8 * self.box * pixel)
        made = re.match(r"\d+@(\w+/job\d+)/", str(source.images[0]))
        self._extracted = options_of(folder / made[1] / "job.star") if made else {}
        reported = arms(folder / FOLDER).values()
        check_same(
            folder / FOLDER,
            "report",
            {"source": [arm["source"] for arm in reported if "source" in arm]},
            {"source": [str(self.particles)]},
            replace=self.chosen.replace,
            remedy="move it, or set workflow.replace; RELION's jobs stay as they are",
        )
        if self.chosen.reextract:
            self._check_extraction()

    def _check_extraction(self) -> None:
        """Refuse what makes no sense of re-extraction before hours go into what comes first."""
        given = self.chosen.micrographs
        if given is not None and not given.is_relative_to(self.project):
            raise InputError(
                f"is not in RELION's project folder {self.project}",
                file=given,
                remedy="copy it there: its micrographs are named relative to that",
            )
        # Where nobody names them and they are not found, extraction is left out later, with a note.
        with nullcontext() if given else suppress(MissingMicrographsError):
            self._boxes(self._micrographs()[1].pixel_size)

    def stages(self) -> tuple[str, ...]:
        """Those of the chosen arm, in order."""
        return tuple(
            stage
            for stage in STAGES
            if (self.chosen.judge or not stage.startswith("select"))
            and (self.chosen.reextract or stage != "reextract")
        )

    def left_out(self, stage: str, before: Mapping[str, Job]) -> str | None:
        """Why a stage cannot be gone through, though those after it can; None where it can.

        Raises:
            InputError: what it is given cannot be read.
        """
        if stage == "reextract":
            try:
                self._reextract(before)
            except MissingMicrographsError as error:
                return f"{stage} was left out, and particles went on as they were: {error}"
        return None

    def run(self, stage: str, before: Mapping[str, Job]) -> Job:
        """Go through a stage, given the jobs of those before it.

        Raises:
            RelionError: it failed.
            InputError: nothing is left to go on with.
        """
        kind, options = getattr(self, f"_{stage}")(before)
        options = {**options, **self.chosen.options.get(stage, {})}
        job = self.relion.run(kind, options)
        if stage.startswith("select") and not self._count(f"{job.name}/particles.star"):
            raise InputError(
                "no particle is kept, so there is nothing to go on with",
                file=job.folder / REPORT,
                remedy="look at the verdicts there, give another ensemble, or go on by hand in RELION",
            )
        return job

    def go(
        self,
        work: Callable[[str, Mapping[str, Job]], Job] | None = None,
        say: Callable[[str], object] | None = None,
    ) -> Path:
        """Go through every stage of the chosen arm, and report.

        Args:
            work: what runs a stage, given its name and the jobs before it; None: `run`.
            say: called with a sentence for each thing to know about a stage: that it was left out, how
                many particles it lost, or which of its options RELION does not know. The report has
                the same.

        Returns:
            the report's page.

        Raises:
            RelionError: a stage failed.
            InputError: nothing is left to go on with.
        """
        jobs: dict[str, Job] = {}
        done: list[Done] = []
        notes: list[str] = []
        for stage in self.stages():
            left_out = self.left_out(stage, jobs)
            remarks = [left_out]
            if left_out is None:
                job = jobs[stage] = (work or self.run)(stage, jobs)
                count = self.particles_after(stage, jobs)
                done.append(Done(stage, job.name, job.seconds, count, job.skipped))
                remarks = [self._dropped(stage, job)]
                remarks += [self._lost(jobs)] if stage == "reextract" else []
            for note in filter(None, remarks):
                notes.append(note)
                if say is not None:
                    say(note)
        resolution = self.resolution(jobs["postprocess"])
        return self.report(done, resolution, self.decisions(jobs), notes)

    def decisions(self, jobs: Mapping[str, Job]) -> dict[str, int]:
        """How many images a person is left to decide on, of each of `ASKED`.

        Without cryoray every class that has particles, and every particle. With it, what the ensembles
        are in doubt about: whose score is in their review band. The run goes on without asking, since
        their threshold decides; particles of classes that are discarded count as well, so that it is
        too many rather than too few.

        Args:
            jobs: of all stages of the chosen arm.
        """
        if self.chosen.judge:
            particle, of_classes = self._judges()
            given = (
                (f"{jobs['select2d'].name}/classes", of_classes, "class2d"),
                (jobs["select2d"].name, particle, "particle"),
                (jobs["select3d"].name, self.settings.classify.class_ensemble, "class3d"),
            )
            return {what: self._doubtful(*one) for what, one in zip(ASKED, given, strict=True)}
        classes = [self._filled(jobs[stage]) for stage in ("class2d", "class3d")]
        return dict(zip(ASKED, (classes[0], self.total, classes[1]), strict=True))

    def _judges(self) -> tuple[str | None, str]:
        """The ensembles of particles and of classes; None: the default."""
        classify = self.settings.classify
        return classify.ensemble, classify.class_ensemble or "class2d"

    def _doubtful(self, folder: str, ensemble: str | None, kind: str) -> int:
        """Images of a job of ours whose score is in the review band of their kind."""
        judge = Ensemble.load(resolve(ensemble, self.settings.registry, kind))
        if (profile := self.project / folder / PROFILE).is_file():
            judge = judge.with_profile(Profile.load(profile))
        band = review_band(judge.threshold) if kind == "class3d" else judge.review
        low, high = (np.float32(end) for end in band)
        table = pq.read_table(self.project / folder / VERDICTS_TABLE, columns=["score"])
        score = table["score"].to_numpy()
        return int(((score >= low) & (score < high)).sum())

    def _filled(self, job: Job) -> int:
        """Classes of a job that have particles."""
        data = parse(self.project / job.file("run_it*_data.star"))["particles"]
        return len(np.unique(data.numbers(rln.CLASS_NUMBER)))

    def particles_after(self, stage: str, before: Mapping[str, Job]) -> int:
        """How many particles a stage was given; how many a selection or extraction left."""
        if stage.startswith("select") or stage == "reextract":
            return self._count(f"{before[stage].name}/particles.star")
        return self._count(self._given(before)) if "import" in before else self.total

    def _count(self, star: str) -> int:
        return len(parse(self.project / star)["particles"])

    def _given(self, before: Mapping[str, Job]) -> str:
        """The particles that come out of the stages so far."""
        for stage in ("select3d", "reextract", "select2d"):
            if stage in before:
                return f"{before[stage].name}/particles.star"
        return before["import"].file("*.star")

    def _found(self, before: Mapping[str, Job]) -> str:
        """The particles to extract again, with the origins at which Class2D found them."""
        if "select2d" in before:
            return f"{before['select2d'].name}/particles.star"
        return before["class2d"].file("run_it*_data.star")

    def _dropped(self, stage: str, job: Job) -> str | None:
        """The note on options that RELION does not know; None where it knows them all."""
        if not job.dropped:
            return None
        version = ".".join(map(str, self.relion.version))
        return (
            f"{stage} went without {', '.join(job.dropped)}, which RELION {version} does not know"
        )

    def _lost(self, before: Mapping[str, Job]) -> str | None:
        """The note on particles that extraction lost; None where it lost none."""
        asked, got = self._count(self._found(before)), self._count(self._given(before))
        if asked == got:
            return None
        return (
            f"reextract lost {asked - got:,} of {asked:,} particles at the edges of micrographs:"
            " centred, their boxes lie outside"
        )

    def _import(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        return "Import", {
            "do_raw": "No",
            "do_other": "Yes",
            "fn_in_other": self.particles.relative_to(self.project).as_posix(),
            "node_type": "Particles STAR file (.star)",
        }

    def _work(self, mpi: int | None = None) -> dict[str, str]:
        """Processes, threads and GPUs."""
        return {
            "nr_mpi": str(mpi or self.chosen.mpi),
            "nr_threads": str(self.chosen.threads),
            "use_gpu": "No" if self.chosen.gpu is None else "Yes",
            "gpu_ids": self.chosen.gpu or "",
            "do_preread_images": "Yes" if self.chosen.preread else "No",
            "particle_diameter": f"{self.diameter:g}",
        }

    def _class2d(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        # RELION 4 and 5 have another algorithm as well, with iterations of its own.
        iterations = "nr_iter" if self.relion.version < (4,) else "nr_iter_em"
        also = {} if self.relion.version < (4,) else {"do_em": "Yes", "do_grad": "No"}
        return "Class2D", {
            "fn_img": self._given(before),
            "nr_classes": str(self.chosen.classes_2d),
            iterations: str(self.chosen.iterations_2d),
            **also,
            **self._work(),
        }

    def _select2d(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        data = before["class2d"].file("run_it*_data.star")
        particle, of_classes = self._judges()
        judges = {"ensemble": particle, "class_ensemble": of_classes, "review": "No"}
        return "External", self._external(data, judges)

    def _select3d(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        data = before["class3d"].file("run_it*_data.star")
        # Where none is named, that of its own kind: pictures of maps are no class averages.
        ensemble = self.settings.classify.class_ensemble
        judges = {"kind": "class3d", "ensemble": ensemble, "review": "No"}
        return "External", self._external(data, judges)

    def _external(self, data: str, given: Mapping[str, str | None]) -> dict[str, str]:
        beside = Path(sys.executable).with_name("cryoray-relion")
        program = shutil.which("cryoray-relion") or (str(beside) if beside.exists() else None)
        if program is None:
            raise SettingsError(
                "cryoray-relion is not on the PATH",
                remedy="install cryoray, or activate its environment",
            )
        named = [(label, value) for label, value in given.items() if value]
        options = {"fn_exe": program, "in_part": data, "nr_threads": str(self.chosen.threads)}
        for number, (label, value) in enumerate(named, 1):
            options |= {f"param{number}_label": label, f"param{number}_value": value}
        return options

    def _micrographs(self) -> tuple[str, Micrographs]:
        """The STAR file of the particles' micrographs, relative to the project, and what it says."""
        given = self.chosen.micrographs
        star = given.relative_to(self.project).as_posix() if given else None
        star = star or self._extracted.get("star_mics")
        if not star:
            raise MissingMicrographsError(
                "comes from no Extract job of this project, which would name its micrographs",
                file=self.particles,
                remedy="give workflow.micrographs, their STAR file",
            )
        return star, read_micrographs(self.project / star)

    def _boxes(self, pixel_size: float) -> tuple[int, int]:
        """The box to extract and what it is rescaled to, px, where micrographs have this Å/px."""
        chosen = self.chosen
        box = chosen.extract_box or 2 * round(self.box * self.pixel_size / pixel_size / 2)
        rescaled = chosen.rescaled_box or (box if chosen.extract_box else self.box)
        if chosen.rescaled_box and rescaled > box:
            raise SettingsError(
                f"workflow.rescaled_box ({rescaled}) is larger than the box of {box} px that is"
                " extracted",
                remedy="give a smaller one, or a larger workflow.extract_box",
            )
        if chosen.extract_box and box * pixel_size < self.diameter:
            raise SettingsError(
                f"a box of {box} px of {pixel_size:g} Å does not hold particles of"
                f" {self.diameter:g} Å",
                remedy="give a larger workflow.extract_box, or a smaller workflow.diameter",
            )
        return box, rescaled

    def _reextract(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        star, micrographs = self._micrographs()
        box, rescaled = self._boxes(micrographs.pixel_size)
        found = self._found(before)
        had = self._extracted
        options = {
            "star_mics": star,
            "do_reextract": "Yes",
            "do_reset_offsets": "No",
            "do_recenter": "Yes",
            "extract_size": str(box),
            "do_rescale": "No" if rescaled == box else "Yes",
            "rescale": str(rescaled),
            "nr_mpi": str(self.chosen.mpi),
            **{name: had[name] for name in _AS_BEFORE if name in had},
        }
        # What RELION would refuse is left out, in a file that the same particles and box make again.
        some = f"{FOLDER}/{found.replace('/', '-').removesuffix('.star')}-{box}.star"
        over = self.chosen.options.get("reextract", {})
        for given in (found, some):
            options["fndata_reextract"] = given
            if self.relion.done("Extract", {**options, **over}):  # the micrographs may go now
                return "Extract", options
        kept = extractable(self.project, self.project / found, micrographs, box)
        options["fndata_reextract"] = found if kept.all() else some
        if not kept.all():
            write_some(self.project / some, self.project / found, kept)
        return "Extract", options

    def _initial(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        return "InitialModel", {
            "fn_img": self._given(before),
            "nr_classes": "1",
            "sym_name": self.chosen.symmetry,
            **self._work(),
        }

    def _class3d(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        initial = before["initial"]
        final = initial.folder / "initial_model.mrc"  # of RELION 4 and 5
        pattern = final.name if final.is_file() else "run_it*_class001.mrc"
        return "Class3D", {
            "fn_img": self._given(before),
            "fn_ref": initial.file(pattern),
            "ref_correct_greyscale": "Yes",
            "ini_high": f"{self.chosen.initial_resolution:g}",
            "sym_name": self.chosen.symmetry,
            "nr_classes": str(self.chosen.classes_3d),
            "nr_iter": str(self.chosen.iterations_3d),
            **self._work(),
        }

    def _refine(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        return "Refine3D", {
            "fn_img": self._given(before),
            "fn_ref": self._best(before["class3d"]),
            "ref_correct_greyscale": "Yes",
            "ini_high": f"{self.chosen.initial_resolution:g}",
            "sym_name": self.chosen.symmetry,
            # One process leads, and each half of the particles has one of its own.
            **self._work(max(self.chosen.mpi, 3)),
        }

    def _best(self, class3d: Job) -> str:
        """The map of the class with most particles."""
        model = parse(self.project / class3d.file("run_it*_model.star"))["model_classes"]
        share = model.numbers(rln.CLASS_DISTRIBUTION)
        return str(model.column(rln.REFERENCE_IMAGE)[int(share.argmax())])

    def _mask(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        refined = before["refine"].file("run_class001.mrc")
        volume, pixel_size = read_volume(self.project / refined)
        pixel_size = pixel_size or self.pixel_size
        _, threshold = automatic_mask(torch.from_numpy(volume), pixel_size)
        return "MaskCreate", {
            "fn_in": refined,
            "inimask_threshold": f"{threshold:.6g}",
            "lowpass_filter": f"{max(15.0, 4 * pixel_size):g}",
            "angpix": "-1",
        }

    def _postprocess(self, before: Mapping[str, Job]) -> tuple[str, dict[str, str]]:
        return "PostProcess", {
            "fn_in": before["refine"].file("run_half1_class001_unfil.mrc"),
            "fn_mask": before["mask"].file("mask.mrc"),
            "angpix": "-1",
        }

    def resolution(self, postprocess: Job) -> float:
        """Å, RELION's own at FSC 0.143, masked and corrected."""
        general = parse(postprocess.folder / "postprocess.star")["general"]
        return float(general.numbers("rlnFinalResolution")[0])

    def report(
        self,
        done: Sequence[Done],
        resolution: float,
        decisions: Mapping[str, int],
        notes: Sequence[str] = (),
    ) -> Path:
        """Write numbers and page of this arm, and of the other where it was run, into the project.

        Args:
            done: the stages.
            resolution: of the map, Å.
            decisions: of `decisions`.
            notes: sentences without a full stop, on stages that were left out or lost particles.

        Returns:
            the page.
        """
        out = self.project / FOLDER
        out.mkdir(exist_ok=True)
        arm = {
            "source": str(self.particles),
            "stages": [asdict(one) for one in done],
            "resolution": resolution,
            "particles": self.total,
            "decisions": dict(decisions),
            "notes": list(notes),
        }
        name = "with" if self.chosen.judge else "without"
        # The arms that are compared are of the same particles.
        for other, numbers in arms(out).items():
            if numbers.get("source", arm["source"]) != arm["source"]:
                (out / f"{other}.json").unlink()
        with replacing(out / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(arm, indent=1) + "\n")
        page = WorkflowPage(
            self.project, self.particles, self.total, self.diameter, self.relion.version
        )
        return page.write(out / REPORT, arms(out), self.chosen, self.settings.classify)


def arms(out: Path) -> dict[str, dict[str, Any]]:
    """What `Workflow.report` wrote of each arm, ``with`` and ``without``, into its folder."""
    files = {name: out / f"{name}.json" for name in ("with", "without")}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
