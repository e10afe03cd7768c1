"""What `classify` writes of a source that is decided: verdicts, what RELION takes, numbers and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cryoray.boosting import prevalence
from cryoray.boosting.prevalence import Prevalence
from cryoray.errors import InputError
from cryoray.formats.class_selection import is_model
from cryoray.formats.class_volumes import write_particles
from cryoray.formats.files import Inputs, check_same, replacing
from cryoray.formats.names import METRICS, PROFILE, SELECTION, VERDICTS_TABLE
from cryoray.formats.source import Source
from cryoray.formats.verdicts import inputs_of, without_optics, write_verdicts
from cryoray.models.class_verdicts import ClassVerdicts, write_selection
from cryoray.models.class_volumes import VolumeVerdicts
from cryoray.models.ensemble import Ensemble
from cryoray.records import RowCounts, Verdicts
from cryoray.report import class_volumes, verdicts
from cryoray.settings import ClassifySettings

#: Images from whose scores the share of good ones can be estimated.
_TELLING = 100
#: The folder of the verdicts on the 2D classes of particles.
CLASSES = "classes"


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """A source each row of which is decided or quarantined.

    Attributes:
        source: the rows.
        verdicts: on all of them.
        ensemble: that judged, with the line that was drawn.
        invert: whether protein is dark in the source.
        classes: the 2D classes of its particles, where they were judged as well.
        volumes: what lies behind the verdicts, where the rows are 3D classes.
    """

    source: Source
    verdicts: Verdicts
    ensemble: Ensemble
    invert: bool = False
    classes: ClassVerdicts | None = None
    volumes: VolumeVerdicts | None = None

    @property
    def share(self) -> Prevalence | None:
        """The share of images worth keeping, whatever it was in training.

        None of few images, from which it cannot be told, and of 3D classes, whose scores are held against the
        best of their job.
        """
        if self.volumes is not None or len(self.verdicts.score) < _TELLING:
            return None
        return prevalence.estimate(self.verdicts.score, self.ensemble.manifest.prevalence)


def write_decided(
    folder: Path, decided: Decided, chosen: ClassifySettings, seconds: float
) -> tuple[RowCounts, dict[str, object]]:
    """Write the folder of verdicts on one source (docs/reference/file-formats.md).

    Args:
        folder: made where it is missing.
        decided: what is written.
        chosen: ``score_column`` and ``also_star`` are used.
        seconds: that judging took so far.

    Returns:
        the row counts, not yet checked, and what the event ``classify.done`` says of the source.
    """
    source, judged, judge = decided.source, decided.verdicts, decided.ensemble
    columns = ["score"] if chosen.score_column else []
    if decided.classes is not None:
        write_verdicts(
            folder / CLASSES, decided.classes.source, decided.classes.verdicts, star_columns=columns
        )
        write_selection(folder / CLASSES, decided.classes, with_score=chosen.score_column)
        columns += ["class_score"] if chosen.score_column else []
    row_counts = write_verdicts(
        folder, source, judged, star_columns=columns, also_star=chosen.also_star
    )
    particles = None
    if decided.volumes is not None:
        particles = write_particles(folder, decided.volumes.classes, judged)
    elif is_model(source):
        of_job = ClassVerdicts.of(source, judged)
        write_selection(folder, of_job, with_score=chosen.score_column)
    if judge.profile is not None:
        judge.profile.save(folder / PROFILE)
    share = decided.share
    counts = {
        **asdict(row_counts),
        **judged.verdict_counts(),
        "review_kept": judged.review_kept(),
    }
    _write_metrics(folder / METRICS, counts, share, judge)
    unknown = without_optics(source)
    if decided.volumes is not None:
        class_volumes.write_page(folder, decided.volumes, particles, chosen, seconds)
    else:
        verdicts.write_page(
            folder,
            source,
            judged,
            judge,
            row_counts,
            chosen,
            seconds,
            share,
            decided.invert,
            unknown,
        )
    return row_counts, {
        "ensemble": judge.digest,
        "policy": judge.policy,
        "threshold": judge.threshold,
        "row_counts": str(row_counts),
        **counts,
        "prevalence": share.as_json() if share else None,
        **({"particles": particles} if particles is not None else {}),
        **({"optics not known": list(unknown)} if unknown else {}),
    }


def holds_verdicts(folder: Path) -> bool:
    """Whether a folder is one of verdicts, which may be replaced.

    Raises:
        InputError: a person has made a selection on them.
    """
    for made in (folder / SELECTION, *folder.glob(f"*/{SELECTION}")):
        if made.is_file():
            raise InputError(
                "is a selection that a person made on these verdicts, and it would be lost",
                file=made,
                remedy="give --out another name, or remove it",
            )
    return (folder / VERDICTS_TABLE).is_file() or all(
        (inside / VERDICTS_TABLE).is_file() for inside in folder.iterdir()
    )


def check_same_verdicts(
    out: Path, sources: Sequence[Source], *, classes: bool = False, replace: bool = False
) -> None:
    """Refuse to lose verdicts on something else (`formats.files.check_same`).

    Those on the same by another ensemble are replaced: they can be had again, and with an upgrade of
    cryoray, or when an ensemble is promoted, the same command means another one.

    Args:
        out: folder that may hold verdicts.
        sources: that are judged now.
        classes: whether the classes of their job are judged, too.
        replace: whether others may be lost.

    Raises:
        InputError: there are some.
    """
    kinds = [each.kind for each in sources]
    now: Inputs = {"source": [str(each.path) for each in sources], "kind": kinds}
    beside: Inputs = {"kind": [*kinds, "class2d"] if classes else kinds}
    for table in sorted(out.rglob(VERDICTS_TABLE)):
        of_classes = table.parent.name == CLASSES and (
            table.parent.with_name(VERDICTS_TABLE).is_file()
        )
        check_same(
            out,
            "folder of verdicts",
            inputs_of(table),
            beside if of_classes else now,
            replace=replace,
        )


def _write_metrics(
    file: Path, counts: Mapping[str, int], share: Prevalence | None, judge: Ensemble
) -> None:
    line = {"policy": judge.policy, "threshold": judge.threshold, "review_band": judge.review}
    written = {**counts, **line, "prevalence": share.as_json() if share else None}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
