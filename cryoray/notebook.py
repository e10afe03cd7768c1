"""cryoray in a notebook or a script: open, load, classify, plot, save; nothing is written but on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cryoray.engine import local
from cryoray.errors import InputError, missing
from cryoray.formats.class_selection import is_model
from cryoray.formats.files import check_same
from cryoray.formats.names import CARD, VERDICTS_TABLE
from cryoray.formats.source import open_source
from cryoray.formats.verdicts import inputs_of, write_verdicts
from cryoray.imaging.pictures import greys
from cryoray.maps.fsc import HalfMapFsc, half_map_fsc
from cryoray.maps.halves import mask_for, read_halves
from cryoray.models import ensemble as models
from cryoray.models.registry import resolve
from cryoray.preparation.described import Described, describe
from cryoray.preparation.look import look_at
from cryoray.preparation.plan import plan
from cryoray.records import VERDICTS, Kind, OnProgress, ignore
from cryoray.records import Verdicts as Table
from cryoray.settings import Settings, load

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Raw MiB that a thread reads at a time.
_RANGE_MIB = 64


class Particles:
    """Some rows of a source: particles, or 2D classes; a slice, mask or list of rows gives fewer.

    Attributes:
        source: the file they are in.
        rows: int64 [n], 0-based, their rows in it.
    """

    def __init__(self, described: Described, rows: NDArray[np.integer] | None = None) -> None:
        self._described, source = described, described.source
        self.source = source
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice | np.ndarray | Sequence[int] | Sequence[bool]) -> Particles:
        chosen = some if isinstance(some, slice) else np.asarray(some)
        return Particles(self._described, self.rows[chosen])

    def __repr__(self) -> str:
        what = "particles" if self.kind == "particle" else "2D classes"
        size = self.pixel_size
        known = size[np.isfinite(size)]
        scale = f", {np.median(known):.4g} Å/px" if len(known) else ""
        return (
            f"<{len(self):,} {what} of {self.source.path.name}{scale}, {len(self.columns)} columns>"
        )

    @property
    def kind(self) -> Kind:
        """What the rows are."""
        return self.source.kind

    @property
    def images(self) -> NDArray[np.object_]:
        """Objects [n], the images' names as the source has them."""
        return self.source.images[self.rows]

    @property
    def pixel_size(self) -> NDArray[np.float32]:
        """float32 [n], Å/px, NaN where the source does not say; a stack's header may."""
        return self.source.pixel_size[self.rows]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metadata columns, as RELION has them."""
        return tuple(self.source.metadata)

    def column(self, name: str) -> NDArray[np.float64]:
        """float64 [n], a column of metadata, NaN where a value is missing.

        Raises:
            InputError: there is no such column.
        """
        if name not in self.source.metadata:
            raise InputError(
                f"has no column {name}",
                file=self.source.path,
                remedy=f"choose from {', '.join(self.columns)}" if self.columns else None,
            )
        return np.asarray(self.source.metadata[name])[self.rows]


class Verdicts(Table):
    """What became of some particles; see `cryoray.records.Verdicts` for the columns.

    Attributes:
        particles: that were judged.
    """

    def __init__(self, table: Table, particles: Particles, ensemble: models.Ensemble) -> None:
        super().__init__(table.table)
        object.__setattr__(self, "particles", particles)
        object.__setattr__(self, "_ensemble", ensemble)

    particles: Particles
    _ensemble: models.Ensemble

    def having(self, verdict: str) -> Particles:
        """The particles with this verdict: keep, discard or review."""
        if verdict not in VERDICTS:
            raise InputError(f"{verdict} is not a verdict", remedy=f"give {' or '.join(VERDICTS)}")
        return Particles(self.particles._described, self.rows[self.verdict == verdict])

    @property
    def kept(self) -> Particles:
        """The particles that are kept."""
        return self.having("keep")

    @property
    def discarded(self) -> Particles:
        """Those that are discarded."""
        return self.having("discard")

    @property
    def review(self) -> Particles:
        """Those that a person should look at."""
        return self.having("review")

    def to_pandas(self) -> pd.DataFrame:
        """A data frame by 0-based row, with the images' names; quarantined rows say why.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing(error) from error
        named = self.with_images(self.particles.source.images[:]).table
        first = ["image", *(name for name in named.column_names if name not in ("row", "image"))]
        frame: pd.DataFrame = named.select(["row", *first]).to_pandas().set_index("row")
        return frame

    def save(self, out: str | Path, *, replace: bool = False) -> Path:
        """Write what ``cryoray classify`` writes, without the page: ``verdicts.parquet`` and four partitions.

        Args:
            out: folder, made where it is missing; older verdicts there on the same source are replaced.
            replace: replace others, too.

        Returns:
            ``out``, absolute.

        Raises:
            InputError: there are verdicts on another source.
        """
        folder, source = Path(out).absolute(), self.particles.source
        if (there := folder / VERDICTS_TABLE).is_file():
            check_same(
                folder,
                "folder of verdicts",
                inputs_of(there),
                {"source": [str(source.path)], "kind": [source.kind]},
                replace=replace,
                remedy="choose another folder, or save with replace=True",
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_verdicts(folder, source, self)
        if is_model(source):
            from cryoray.models.class_verdicts import ClassVerdicts, write_selection

            write_selection(folder, ClassVerdicts.of(source, self), with_score=False)
        return folder

    def plot(self, images: int = 12) -> Figure:
        """The scores with the threshold, above some images of each verdict as the networks saw them.

        Args:
            images: of each verdict, spread evenly over its rows.
        """
        from matplotlib.figure import Figure

        there = [name for name in VERDICTS if len(self.having(name))]
        figure = Figure(figsize=(0.75 * images, 2.6 + 0.95 * len(there)), layout="constrained")
        grid = figure.add_gridspec(
            1 + len(there), images, height_ratios=[2.4, *([0.9] * len(there))]
        )
        axes = figure.add_subplot(grid[0, :])
        counts, _, _ = axes.hist(self.score, np.linspace(0, 1, 41).tolist(), color="0.6")
        if np.max(counts) > 100:
            axes.set_yscale("log")
        axes.axvline(
            self._ensemble.threshold,
            color="k",
            lw=1,
            label=f"keep ≥ {self._ensemble.threshold:.3f}",
        )
        axes.set(xlabel="score", ylabel="images", xlim=(0, 1))
        axes.legend(frameon=False)
        for line, name in enumerate(there, start=1):
            rows = self.having(name).rows
            some = rows[np.unique(np.linspace(0, len(rows) - 1, images).round().astype(int))]
            found, pictures, _ = look_at(self.particles.source, some, self._ensemble.preparation)
            score = self.score[np.searchsorted(self.rows, found)]
            drawn = greys(pictures)
            for place, (picture, value) in enumerate(zip(drawn, score, strict=True)):
                cell = figure.add_subplot(grid[line, place])
                cell.imshow(picture, cmap="gray", vmin=0, vmax=255)
                cell.set_title(f"{value:.2f}", fontsize=7, pad=2)
                cell.set(xticks=[], yticks=[])
                if not place:
                    cell.set_ylabel(f"{name}\n{len(rows):,}", fontsize=8)
        return figure


class Ensemble:
    """Three calibrated networks and a threshold, ready to judge in this process."""

    def __init__(self, loaded: models.Ensemble) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        bound = self._loaded.manifest.operating_point.get("bound")
        promise = f", at most {bound:.0%} of good images lost" if isinstance(bound, float) else ""
        groups = len(self._loaded.manifest.training_groups)
        return (
            f"<ensemble {self.digest[:12]} for {self.kind}, keep ≥ {self.threshold:.3f}{promise},"
            f" trained on {groups:,} groups>"
        )

    @property
    def kind(self) -> Kind:
        """What it judges."""
        return self._loaded.kind

    @property
    def digest(self) -> str:
        """Identifies it, 64 hexadecimal digits."""
        return self._loaded.digest

    @property
    def threshold(self) -> float:
        """Images of this score or more are kept."""
        return self._loaded.threshold

    @property
    def features(self) -> tuple[str, ...]:
        """The metadata that it uses."""
        return self._loaded.features

    @cached_property
    def card(self) -> str:
        """Markdown that says what it was made of and what it is worth."""
        assert self._loaded.path is not None
        file = self._loaded.path / CARD
        return file.read_text("utf-8") if file.is_file() else ""

    def classify(
        self,
        particles: Particles | str | Path,
        on_progress: OnProgress = ignore,
        *,
        profile: str | Path | None = None,
    ) -> Verdicts:
        """Judge particles in this process; nothing is written.

        Args:
            particles: opened, or the path of a source.
            profile: the project's ``profile.json``, or ``none``: judge without; None: one is made of the
                particles' whole source, where the ensemble can judge by it.
            on_progress: called after each piece.

        Raises:
            EnsembleError: they are of another kind than it judges.
        """
        given = particles if isinstance(particles, Particles) else open(particles, self.kind)
        self._loaded.check_kind(given.kind, given.source.path)
        judge, source = self._loaded, given.source
        dark = given._described.is_dark(judge.preparation)
        planned = plan(source, judge.preparation, _RANGE_MIB, rows=given.rows, invert=dark)
        if judge.takes_profile:
            # A profile that is given needs no look at the other rows.
            whole = planned
            if profile is None:
                whole = plan(source, judge.preparation, _RANGE_MIB, invert=dark)
            given_profile = None if profile is None else str(profile)
            (judge,) = local.with_profiles([whole], judge, given_profile)
        (judged,) = local.judge_plans([planned], judge, _RANGE_MIB, on_progress)
        return Verdicts(judged, given, judge)


def open(path: str | Path, kind: Kind = "particle") -> Particles:  # noqa: A001
    """The rows of a source: a RELION ``.star``, an ``.mrcs``, a cryoSPARC ``.cs``, or a job folder.

    Metadata of a bare stack come from the STAR file that describes it (`formats.companion`).

    Raises:
        InputError: nothing is there, or more than one source is.
        FormatError: it cannot be read, or has no images of this kind.
    """
    return Particles(describe(open_source(Path(path), kind)))


def load_ensemble(
    name: str | Path = "particle", *, review: bool = True, settings: Settings | None = None
) -> Ensemble:
    """An ensemble: ``particle`` or ``class2d`` that ships, a promoted name, or a folder.

    Args:
        name: or path.
        review: False: it leaves nothing under review; the threshold decides.
        settings: their registry is looked in; None: those of the environment.

    Raises:
        EnsembleError: there is none, or it is damaged.
    """
    chosen = settings or load()
    return Ensemble(models.Ensemble.load(resolve(name, chosen.registry), review=review))


def fsc(
    half1: str | Path,
    half2: str | Path,
    mask: str | Path | None = None,
    *,
    pixel_size: float | None = None,
) -> HalfMapFsc:
    """FSC of two half-maps as RELION defines it; ``.resolution(0.143)`` in Å, by both definitions.

    Args:
        half1: unfiltered half-map.
        half2: the other.
        mask: file of a soft mask, or ``auto``; None: no mask.
        pixel_size: Å/px; None: the header's.

    Raises:
        FormatError: a map cannot be read.
        InputError: the maps do not belong together.
    """
    chosen = load().validation
    halves, size = read_halves(Path(half1), Path(half2), pixel_size)
    weights, _ = mask_for(None if mask is None else str(mask), halves, size, chosen)
    return half_map_fsc(*halves, size, weights, draws=chosen.random_phases, seed=chosen.seed)
