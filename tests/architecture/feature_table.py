"""The table of features in docs; ``python -m tests.architecture.feature_table`` renews it."""

from __future__ import annotations

from pathlib import Path

from cryoray.preparation.features import FEATURES

PAGE = Path(__file__).parents[2] / "docs/features.md"

_HEAD = """\
# Metadata that the networks see

Beside its image, each network sees numbers from the files that RELION or cryoSPARC wrote, and, of 2D
classes, numbers measured on the image in the way of RELION's class ranker. This is all of them, made
from `cryoray/preparation/features.py`. What a source lacks, or says with a value that means unknown
(999, -999, inf, nan), is *missing*: the network is told so, and a feature that training never saw
counts as missing. `--features` of `cryoray ingest` and `cryoray train` chooses among the names.

A particle's features depend on its source alone, never on which rows of it are asked for.

"""
_CLASSES = """
## 2D classes

Each of these, but the first two, comes three times: as it is, as its rank among the classes of the
job (`…_rank`, 0 lowest, 1 highest, ties share a place), and as its robust z-score within the job
(`…_z`: distance of the transformed value from the median, over 1.4826 times the median absolute
deviation, or 1.2533 times the mean one where half of the values are equal; asinh of that). Of fewer
than five classes a job has neither. A job is what lies in one stack.

The *circle* is the particle's: its diameter is what the job's `optimiser.star` or `job.star` says,
else `--diameter`, else it is found where the classes are masked. Zero *grey* is an image's level
outside the circle; one is the median, over the job's classes, of the standard deviation within it.
Areas are fractions of the circle, and sums are divided by its area. So numbers of RELION and of
cryoSPARC, and of jobs at different pixel sizes, go together. They are RELION's definitions but not
RELION's units: its `features.star` holds other values. Protein is what is brighter than 0.05
standard deviations of the image low-pass filtered to 25 Å and reaches well into the middle.

`python -m benchmarks.accuracy.class_features FOLDER` tells, of classes that somebody selected, how well each
feature alone tells the selected from the others.

"""


def table() -> str:
    """The whole page."""
    particles = [feature for feature in FEATURES if "particle" in feature.kinds]
    classes = [f for f in FEATURES if "class2d" in f.kinds and not f.within]
    return "".join([_HEAD, "## Particles\n\n", _table(particles), _CLASSES, _table(classes)])


def _table(features: list) -> str:
    lines = [
        "| feature | made of | unit | transform | what it is | documented in |",
        "|---" * 6 + "|",
    ]
    for one in features:
        columns = ", ".join(f"`{column}`" for column in one.columns)
        lines.append(
            f"| `{one.name}` | {columns} | {one.unit or '–'} | {one.transform or '–'} "
            f"| {one.documentation} | {one.source} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(table())
