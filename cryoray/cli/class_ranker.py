"""``cryoray-class-ranker``: RELION's ``relion_class_ranker``, with an ensemble of cryoray as its judge."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cryoray.cli import relion

#: Options about RELION's own network and its features, with a value and without.
_VALUES = (
    *("--ext", "--python", "--fn_pytorch_model", "--fn_torch_model", "--select", "--fn_score"),
    *("--cf_file", "--mask_folder_name", "--nr_subimages", "--subimage_boxsize", "--radius_ratio"),
    *("--radius", "--lowpass", "--binary_threshold", "--debug", "--verb", "--fn_features"),
    *("--output_subimages", "--output_subimage_star"),
)
_FLAGS = (
    *("--do_granularity_features", "--skip_angular_errors", "--save_masks", "--save_mask_c"),
    *("--extract_subimages", "--write_normalized_features"),
)
#: What a caller of the original always gives is taken without a word.
_USUAL = ("--python", "--do_granularity_features", "--ext", "--verb")
#: Options that make the original do something else altogether.
_OTHER_WORK = {
    "--train": "it trains RELION's own network; `cryoray train` trains an ensemble",
    "--only_do_subimages": "it only extracts images for RELION's own network",
    "--only_class_nr": "all classes of a job are judged together",
}

_DIFFERENCES = """\
It writes OUT/ROOT_optimiser.star, ROOT_model.star (with rlnClassScore), ROOT_data.star and
backup_selection.star; with --auto_select also the files of selected classes (with
rlnPredictedClassScore) and particles. OUT/cryoray has the verdicts in full.

Where it differs from RELION 4 and 5:
  scores            are calibrated probabilities that a person would keep the class.
  --min_score       left out, the ensemble decides: the classes selected are those that `cryoray classify
                    --no-review` keeps of the same job, at the threshold that bounds the loss of good
                    classes. (Without --no-review, `classify` leaves those near it for a person.) A number
                    means what it does in the original, whose default is 0.5; `ensemble` is the same as
                    leaving it out. With --relative_thresholds the default is 0.5, as in the original.
  empty classes     score 0 and are never selected; the original gives them -999, which spoils every
                    quantile taken over rlnClassScore.
  --relative_thresholds
                    relates to the highest score, as the manual says; in the original it is never computed.
  --select_min_nr_particles
                    counts the particles that are written (each belongs to its most probable class); the
                    original counts rlnClassDistribution, which may promise more than it gives.
  --select_min_nr_classes
                    holds beside --select_min_nr_particles; the original drops it once the other is met.
  rows              of classes and particles are copied verbatim, in the model's and the data's order, with
                    all their columns; rlnParticleNr counts the particles of each selected class.
  CTF               classifications without CTF correction are ranked as well.
  other work        --train, --only_do_subimages and --only_class_nr are refused.
"""


def main() -> NoReturn:
    """Entry point of the ``cryoray-class-ranker`` command."""
    relion.run(_work, control=("--pipeline_control",))


def _parser() -> relion.Parser:
    parser = relion.Parser(
        prog="cryoray-class-ranker",
        description="Rank the 2D classes of a RELION job and select the good ones, in place of "
        "relion_class_ranker: give the same options.",
        epilog=_DIFFERENCES,
    )
    add = parser.add_argument
    add("--opt", metavar="FILE", required=True, help="optimiser.star of the classification")
    add("--o", metavar="OUT", default="./", help="folder of the output (default: ./)")
    add("--ensemble", metavar="NAME|DIR", help="judge; else CRYORAY_RANK__ENSEMBLE or "
        "CRYORAY_CLASSIFY__ENSEMBLE, else the registry's class2d, else the one that ships")  # fmt: skip
    add("--auto_select", action="store_true", help="select classes and their particles by score")
    add("--min_score", metavar="S",
        help="lowest score selected (default: as the ensemble decides; see below)")  # fmt: skip
    add("--max_score", metavar="S", type=float, default=999.0, help="highest score selected (999)")
    add("--relative_thresholds", action="store_true",
        help="both are fractions of the highest score of a class")  # fmt: skip
    add("--select_min_nr_particles", metavar="N", type=int, default=-1,
        help="add the best of the other classes until there are so many particles")  # fmt: skip
    add("--select_min_nr_classes", metavar="N", type=int, default=-1,
        help="add the best of the other classes until there are so many classes")  # fmt: skip
    add("--fn_sel_parts", metavar="NAME", default="particles.star", help="(particles.star)")
    add("--fn_sel_classavgs", metavar="NAME", default="class_averages.star",
        help="(class_averages.star)")  # fmt: skip
    add("--fn_root", metavar="ROOT", default="rank", help="of optimiser, model and data (rank)")
    add(
        "--pipeline_control", metavar="DIR", help="folder of exit files and of RELION_JOB_ABORT_NOW"
    )
    network = parser.add_argument_group("about RELION's own network: accepted, without effect")
    for option in _VALUES:
        network.add_argument(option, metavar="X")
    for option in _FLAGS:
        network.add_argument(option, action="store_true", default=None)
    for option in _OTHER_WORK:
        add(option, nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def _work(arguments: Sequence[str]) -> None:
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    for option, why in _OTHER_WORK.items():
        if given[option[2:]] is not None and (option, given[option[2:]]) != (
            "--only_class_nr",
            "-1",
        ):
            parser.error(f"{option} is not done here: {why}")
    idle = [option for option in (*_VALUES, *_FLAGS) if given[option[2:]] is not None]
    if idle := [option for option in idle if option not in _USUAL]:
        relion.say(f" Without effect, since RELION's own network is not used: {' '.join(idle)}")

    from cryoray.settings import load

    try:
        own = given["min_score"] in (None, "ensemble")
        lowest = None if own else float(given["min_score"])
    except ValueError:
        parser.error(f"--min_score is {given['min_score']!r}, neither a number nor `ensemble`")
    if given["min_score"] == "ensemble" and given["relative_thresholds"]:
        parser.error(
            "--min_score ensemble is not relative: give it a number, or leave one of both out"
        )
    named = given["ensemble"]
    settings = load(rank={"ensemble": named} if named else {})

    from cryoray.boosting.class_choice import Choice
    from cryoray.verbs.rank import rank

    out = given["o"] if given["o"].endswith("/") else given["o"] + "/"
    done: dict[str, object] = {}
    row_counts = rank(
        Path(given["opt"]),
        Path(out),
        settings,
        Choice(
            min_score=lowest,
            max_score=given["max_score"],
            relative=given["relative_thresholds"],
            min_particles=given["select_min_nr_particles"],
            min_classes=given["select_min_nr_classes"],
        )
        if given["auto_select"]
        else None,
        root=given["fn_root"],
        particles=given["fn_sel_parts"],
        averages=given["fn_sel_classavgs"],
        names=out,
        on_event=lambda event: done.update(event.data),
    )
    relion.say(
        f" Written model with all predicted scores to: {out}{given['fn_root']}_optimiser.star"
    )
    if given["auto_select"]:
        relion.say(
            f" Written {done['particles_selected']} selected particles to: {out}{given['fn_sel_parts']}"
        )
        relion.say(
            f" Written {done['selected']} selected classes to: {out}{given['fn_sel_classavgs']}"
        )
    relion.say(
        f" Classes: {row_counts}; {done['empty']} of them are empty or no images and score 0"
    )


if __name__ == "__main__":
    main()
