"""``cryoray-relion``: a RELION External job that judges particles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cryoray.cli import relion

#: What an External job may be given that this one has no use for.
_IDLE = ("in_movies", "in_mics", "in_coords", "in_3dref", "in_mask")
#: Files of the verdicts and their names in the job: what RELION's users look for is particles.star.
_NAMES = {"kept.star": "particles.star"}
#: Files of particles kept, discarded and to be reviewed: judged themselves, or by their 3D classes.
_SIDES = ("particles.star", "discarded.star", "review.star")
_OF_CLASSES = ("particles.star", "particles_discarded.star", "particles_review.star")

_EPILOG = """\
In RELION, choose External. External executable: cryoray-relion, with its folder where it is not on the
PATH of RELION's jobs. Input particles: any STAR file of extracted particles. Params: none are needed; the
label `ensemble` with an ensemble as its value has another judge than the one that ships. The job's folder
then has particles.star (kept), discarded.star, review.star and quarantined.star, every row as it was, and
verdicts.parquet; all but the quarantined are nodes of the pipeline. With the label `review` and the value
No nothing is left under review: the ensemble's threshold decides, which is where it bounds its losses.

With `class_ensemble` and the run_itNNN_data.star of a Class2D job as Input particles, a particle is kept
only if its class is kept and it is not itself discarded; classes/ has the selection of the classes.

With `kind` class3d and the run_itNNN_data.star of a Class3D job as Input particles, an ensemble of 2D classes
judges the maps of its classes: particles.star has the particles of those kept, particles_discarded.star and
particles_review.star those of the others, report.html the ranking with pictures.
"""


def main() -> NoReturn:
    """Entry point of the ``cryoray-relion`` command."""
    relion.run(_work, control=("--pipeline_control", "--o"))


def _parser() -> relion.Parser:
    parser = relion.Parser(
        prog="cryoray-relion",
        description="Judge particles as a job of RELION's pipeline (External).",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--o", metavar="External/jobNNN/", required=True, help="the job's folder")
    add("--in_parts", metavar="FILE.star", help="particles to judge")
    add("--ensemble", metavar="NAME|DIR", help="judge; else "
        "CRYORAY_CLASSIFY__ENSEMBLE, else the registry's particle, else the one that ships")  # fmt: skip
    add("--class_ensemble", metavar="NAME|DIR", help="judge of the particles' 2D classes")
    add("--kind", choices=("particle", "class3d"), help="what is judged (default: particle)")
    add(
        "--review",
        choices=("Yes", "No"),
        help="No: nothing is left under review; the threshold decides",
    )
    add("--score_column", nargs="?", const="Yes", metavar="Yes|No",
        help="add _rlnCryorayScore to the particles")  # fmt: skip
    add("--replace", nargs="?", const="Yes", choices=("Yes", "No"),
        help="Yes: replace verdicts in the job's folder, also on other particles")  # fmt: skip
    add("--j", metavar="N", type=int, help="CPUs of a local Ray")
    add("--pipeline_control", metavar="DIR", help="folder of exit files (default: that of --o)")
    for option in _IDLE:
        add(f"--{option}", metavar="FILE", help="ignored")
    return parser


def _work(arguments: Sequence[str]) -> None:
    parser = _parser()
    given = parser.parse_args(arguments)
    for option in _IDLE:
        if getattr(given, option):
            relion.say(f" --{option} is ignored: this job judges particles (--in_parts).")
    if not given.in_parts or not given.in_parts.endswith(".star"):
        parser.error("no STAR file of particles is given: fill in Input particles (--in_parts)")

    from cryoray.settings import load

    names = ("ensemble", "class_ensemble", "kind")
    classify = {name: getattr(given, name) for name in names}
    sections: dict[str, dict[str, Any]] = {
        "classify": {name: value for name, value in classify.items() if value}
    }
    if given.review:
        sections["classify"]["review"] = given.review == "Yes"
    if given.score_column:
        wish = given.score_column.lower()
        sections["classify"]["score_column"] = wish not in ("no", "false", "0")
    if given.replace:
        sections["classify"]["replace"] = given.replace == "Yes"
    if given.j:
        # A reader and a judge need one each, or they wait for each other for ever.
        sections["runtime"] = {"cpus": max(2, given.j)}
    settings = load(None, **sections)

    from cryoray.records import VERDICTS, Event
    from cryoray.verbs import classify as verb

    out = Path(given.o)
    done: dict[str, Any] = {}

    def report_event(event: Event) -> None:
        if event.name == "classify.done":
            done.update(event.data)

    made = verb.classify(
        Path(given.in_parts), out / "cryoray", settings, instead_of=out, on_event=report_event
    )
    volumes = given.kind == "class3d"
    _move(made, out, {} if volumes else _NAMES)
    files = _OF_CLASSES if volumes else _SIDES
    counts = done["particles"] if volumes else done
    partitions = zip(VERDICTS, files, strict=True)
    nodes = [(file, "particles") for verdict, file in partitions if counts[verdict]]
    if (out / "classes").is_dir():
        nodes.append(("classes/class_averages.star", "classes"))
    relion.write_nodes(out, given.o, nodes)
    for verdict in VERDICTS:
        particles = f", {counts[verdict]:,} particles" if volumes else ""
        relion.say(f" {verdict}: {done[verdict]:,}{particles}")
    relion.say(f" {done['row_counts']}")


def _move(made: Path, out: Path, names: Mapping[str, str] = _NAMES) -> None:
    """Everything in ``made`` to ``out``, some of it under other names."""
    for path in sorted(made.iterdir()):
        there = out / names.get(path.name, path.name)
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)
    made.rmdir()


if __name__ == "__main__":
    main()
