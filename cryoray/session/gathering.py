"""Labels that people gave in sessions, as small sources, to train on and to compare ensembles on.

A session either teaches or judges, never both: images of one session are alike, and an ensemble that
learned from some of them would be flattered by the others. Which it does follows from its name, so it
is the same every night. One that teaches gives its overrides; one that judges gives its blind sample,
since an override was made by somebody who had seen the machine's answer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cryoray.formats.files import replacing_folder, write_csv
from cryoray.formats.source import open_source
from cryoray.formats.subset import write_star
from cryoray.records import Kind
from cryoray.session.labels import audit_rows, training_rows
from cryoray.session.ledger import Ledger

Use = Literal["teach", "judge"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The labelled images of one session.

    Attributes:
        session: its name, which is the group of the images.
        use: what they are for.
        images: how many.
        keep: how many of them are good.
        lost: how many more there were, of which the file that described them is gone.
        digest: of the labels; other ones, or another choice of images, give another.
        folder: of `NNNN.star`, one for each file that described the images, each with its labels.
    """

    session: str
    use: Use
    images: int
    keep: int
    lost: int
    digest: str
    folder: Path

    @property
    def name(self) -> str:
        """Of what is made from them."""
        return f"{self.session}-{self.use}-{self.digest[:12]}"

    @property
    def stars(self) -> list[Path]:
        """The sources, in order."""
        return sorted(self.folder.glob("*.star"))

    @property
    def selection(self) -> Path:
        """The labels of all of them."""
        return self.folder / "labels.csv"


def use_of(session: str, judge_share: float) -> Use:
    """Whether a session teaches or judges; as good as random, and the same whenever asked."""
    drawn = int.from_bytes(hashlib.blake2b(session.encode(), digest_size=8).digest())
    return "judge" if drawn < judge_share * 2**64 else "teach"


def gather(ledger: Ledger, out: Path, kind: Kind, judge_share: float) -> Iterator[Gathered]:
    """The labelled images of each session, those to learn from only where its owner released them.

    Args:
        ledger: of the sessions.
        out: a folder; what is gathered is in one below it that is named for its content, so that
            what was gathered before is left as it is.
        kind: of the images; sessions have others too.
        judge_share: of the sessions, those that judge.

    Yields:
        sessions with labels, by name.

    Raises:
        FormatError: a file that described images is no longer what it was.
    """
    for session in sorted(ledger.sessions(), key=lambda row: row.name):
        use = use_of(session.name, judge_share)
        if use == "teach" and not session.trainable:
            continue
        rows = (training_rows if use == "teach" else audit_rows)(ledger, session.name)
        rows = [row for row in rows if row.kind == kind]
        there = [row for row in rows if _described_by(row).is_file()]
        if there:
            yield _written(session.name, use, there, len(rows) - len(there), out, kind)


def _described_by(row: Any) -> Path:
    return Path(row.described_by or row.path)


def _written(session: str, use: Use, rows: list[Any], lost: int, out: Path, kind: Kind) -> Gathered:
    by_source: dict[Path, dict[str, bool]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (row.path, row.row)):
        by_source[_described_by(row)][row.image] = bool(row.keep)
    content = "\n".join(
        f"{path}\t{image}\t{int(keep)}"
        for path, labels in by_source.items()
        for image, keep in labels.items()
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    labels = [keep for each in by_source.values() for keep in each.values()]
    folder = out / f"{session}-{use}-{digest[:12]}"
    if not folder.is_dir():
        with replacing_folder(folder, "gathered labels", lambda there: False) as partial:
            lines = [
                line
                for number, (path, each) in enumerate(by_source.items(), 1)
                for line in _subset(path, each, partial / f"{number:04d}.star", kind)
            ]
            write_csv(partial / "labels.csv", ("stack", "index", "label"), lines)
    return Gathered(session, use, len(labels), sum(labels), lost, digest, folder)


def _subset(
    path: Path, labels: dict[str, bool], star: Path, kind: Kind
) -> Iterable[tuple[str, int, int]]:
    """Write the labelled rows of a source under absolute names; their lines of `labels.csv`."""
    source = open_source(path, kind)
    rows = np.array([row for row, image in enumerate(source.images) if image in labels], np.int64)
    places = [
        (str(source.stacks[stack]), frame + 1)
        for stack, frame in zip(source.stack[rows], source.frame[rows].tolist(), strict=True)
    ]
    write_star(star, source, rows, [f"{frame:06d}@{stack}" for stack, frame in places])
    return [
        (stack, frame, int(labels[source.images[row]]))
        for row, (stack, frame) in zip(rows, places, strict=True)
    ]
