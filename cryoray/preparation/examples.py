"""The labelled rows of some prepared sets, as one numbered row of examples that a fit can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cryoray.errors import SelectionError, SettingsError
from cryoray.formats.files import is_number
from cryoray.preparation.joined import check_together
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import TrainSettings

Level = Literal["project", "micrograph"]


class SetExamples:
    """Labelled rows of prepared sets that are trained on; images are read when they are asked for.

    Each epoch draws its own rows from everywhere, so workers read the sets themselves, by memory map,
    instead of a Ray Data stream: a filtered set is a sampler, and a stream cannot be sampled.

    Args:
        sets: folders of prepared sets.
        rows: for each set the rows that are used, int64.
        features: names of the metadata features.
    """

    def __init__(
        self, sets: Sequence[Path], rows: Sequence[np.ndarray], features: tuple[str, ...]
    ) -> None:
        self.sets = [PreparedSet.open(path) for path in sets]
        self.rows = list(rows)
        self.names = features
        self._start = np.cumsum([0, *(len(r) for r in rows)])
        self.features = np.concatenate(
            [s.feature_matrix(features)[r] for s, r in zip(self.sets, rows, strict=True)]
        ).astype(np.float32)
        self.labels = np.concatenate([s.labels[r] for s, r in zip(self.sets, rows, strict=True)])

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Prepared images of these examples, float32 [n, box, box]."""
        box = self.sets[0].settings.box
        images = np.empty((len(rows), box, box), np.float32)
        of_set = np.searchsorted(self._start, rows, side="right") - 1
        for number in np.unique(of_set):
            here = np.flatnonzero(of_set == number)
            local = self.rows[number][rows[here] - self._start[number]]
            images[here] = self.sets[number].images(local)
        return images

    def where(self, chosen: np.ndarray) -> SetExamples:
        """Only the examples for which ``chosen``, bool [N], is true."""
        per_set = np.split(chosen, self._start[1:-1])
        rows = [r[c] for r, c in zip(self.rows, per_set, strict=True)]
        return SetExamples([s.path for s in self.sets], rows, self.names)

    def column(self, name: str) -> np.ndarray:
        """A column of the sets' tables for these examples, object [N]."""
        parts = [
            s.table[name].to_numpy(zero_copy_only=False)[r]
            for s, r in zip(self.sets, self.rows, strict=True)
        ]
        return np.concatenate(parts)

    @property
    def particles(self) -> np.ndarray | None:
        """Of classes, each one's share of its job's particles, float32 [N]; None where it is not known."""
        if any("class_distribution" not in s.features for s in self.sets):
            return None
        # The column holds the logarithm; NaN where a job does not say.
        share = np.exp(np.array(self.column("class_distribution"), np.float32))
        return None if np.isnan(share).all() else share

    def groups(self, level: Level) -> np.ndarray:
        """Group ids of these examples, object [N]."""
        return np.concatenate(
            [s.groups(level)[r] for s, r in zip(self.sets, self.rows, strict=True)]
        )


def gather(sets: Sequence[Path], settings: TrainSettings) -> tuple[SetExamples, Level]:
    """The examples of a training, and the level at which groups are split.

    Returns:
        The labelled rows outside ``settings.hold_out``, and that level.

    Raises:
        InputError: sets that do not go together.
        FormatError: one is damaged.
        SelectionError: no labels, or of one kind only.
        SettingsError: a feature or a group to hold out is not there, or too few groups are left.
    """
    opened = [PreparedSet.open(path) for path in sets]
    for each in opened:
        each.check()
    check_together(opened)
    first = opened[0]
    common = tuple(name for name in first.features if all(name in s.features for s in opened))
    for name in settings.features or ():
        if name not in common:
            raise SettingsError(
                f"the feature {name} is not in every set", remedy=f"choose from {', '.join(common)}"
            )
    labelled = [np.flatnonzero(s.labels >= 0) for s in opened]
    everything = SetExamples(
        sets, labelled, common if settings.features is None else settings.features
    )
    if settings.features is None:
        everything = SetExamples(sets, labelled, _telling(everything))
    if not len(everything):
        raise SelectionError(
            "no image has a label", file=first.path, remedy="ingest it again with --selection"
        )
    level = split_level(everything, settings)
    groups = everything.groups(level)
    keep = ~np.isin(groups, sorted(held_out_groups(groups, settings)))
    examples = everything.where(keep)
    for label, name in ((1, "keep"), (0, "discard")):
        if not np.any(examples.labels == label):
            raise SelectionError(
                f"of {len(examples):,} labelled images none says {name}",
                file=first.path,
                remedy="both kinds are needed to learn from; look at the selection",
            )
    if len(np.unique(groups[keep])) < 2:
        raise SettingsError(
            f"all images to train on belong to one {level}, so none can be left out to test on",
            remedy="add a set, or use --split-by micrograph",
        )
    return examples, level


def _telling(examples: SetExamples) -> tuple[str, ...]:
    """The features that differ within a project.

    One that is the same for all of a project, as the pixel size is, tells which project an image is of
    and nothing about the image; a network would learn it by heart.
    """
    projects = examples.groups("project")
    differs = np.zeros(len(examples.names), bool)
    for project in np.unique(projects):
        values = examples.features[projects == project]
        lowest = np.where(np.isnan(values), np.inf, values).min(axis=0)
        differs |= np.any(values > lowest, axis=0)
    return tuple(name for name, telling in zip(examples.names, differs, strict=True) if telling)


def split_level(examples: SetExamples, settings: TrainSettings) -> Level:
    """What the settings say; else projects where two are left to cross-fit over, or micrographs."""
    if settings.split_by != "auto":
        return settings.split_by
    return "project" if len(np.unique(examples.groups("project"))) >= 3 else "micrograph"


def held_out_groups(groups: np.ndarray, settings: TrainSettings) -> set[str]:
    """The groups that ``settings.hold_out`` names, or a random fraction of them (at least one)."""
    if settings.hold_out is None:
        return set()
    names = sorted(set(groups))
    chosen = {name.strip() for name in settings.hold_out.split(",")}
    # A project's name holds out all its micrographs.
    inside = {n for n in names if n in chosen or n.partition("/")[0] in chosen}
    unknown = sorted(chosen - inside - {n.partition("/")[0] for n in inside})
    if len(unknown) == len(chosen) == 1 and is_number(unknown[0]):
        fraction = float(unknown[0])
        if not 0 < fraction < 1:
            raise SettingsError(
                f"--hold-out {settings.hold_out} is not a fraction",
                remedy="give one between 0 and 1",
            )
        count = max(1, round(fraction * len(names)))
        inside = set(np.random.default_rng(settings.seed).permutation(names)[:count].tolist())
    elif unknown:
        raise SettingsError(
            f"there is no group {unknown[0]} to hold out",
            remedy=f"choose from {', '.join(names[:8])}{' …' if len(names) > 8 else ''}",
        )
    if len(inside) == len(names):
        raise SettingsError(
            "all groups are held out, so none is left to train on",
            remedy="hold out fewer groups or add sets",
        )
    return inside
