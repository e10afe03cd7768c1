"""The sections of a report, each made from numbers by one function; the caller picks and orders them."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup
from pydantic import BaseModel

from cryoray.maps import fsc, similarity
from cryoray.maps.fsc import Directional, HalfMapFsc
from cryoray.maps.similarity import ClassLikeness, Likeness
from cryoray.metrics import accuracy
from cryoray.records import MEMBERS
from cryoray.report import plots, tiles

#: Bins of a view that a plot shows; the table in metrics.json has them all.
MOST_BINS = 30

#: Programs whose versions a reader may need to repeat the run.
PROGRAMS = ("cryoray", "torch", "ray", "numpy", "prefect")


@dataclass(frozen=True, slots=True)
class Headline:
    """The few numbers a reader came for: (value, what it is), large."""

    numbers: tuple[tuple[str, str], ...]
    block: ClassVar[str] = "headline"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one pair a line; those with a title stand side by side."""

    pairs: tuple[tuple[str, str], ...]
    title: str = ""
    code: bool = False
    block: ClassVar[str] = "facts"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column heads; the first column is text, the others are numbers unless ``text``.

    A ``narrow`` one may stand beside a figure.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    text: tuple[int, ...] = ()
    narrow: bool = False
    block: ClassVar[str] = "table"


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot; ``alt`` says in words what it shows to those who cannot see it."""

    svg: Markup
    alt: str
    caption: str
    wide: bool = False
    block: ClassVar[str] = "figure"


@dataclass(frozen=True, slots=True)
class Cells:
    """The confusion of labels and forced decisions."""

    confusion: accuracy.Confusion
    block: ClassVar[str] = "cells"


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Images in one row of a gallery.

    Attributes:
        title: what they have in common.
        tone: ``keep``, ``discard`` or ``review``: the colour of their frames.
        images: float [n, H, W].
        scores: float [n].
        names: what each is called in its source.
        note: a sentence under the title.
    """

    title: str
    tone: str
    images: np.ndarray
    scores: np.ndarray
    names: Sequence[str]
    note: str = ""
    block: ClassVar[str] = "strip"

    @property
    def tiles(self) -> list[tuple[str, str, str]]:
        """(address, score, name) of each image."""
        addresses = tiles.data_uris(self.images)
        shown = [f"{score:.2f}" for score in self.scores]
        return list(zip(addresses, shown, map(str, self.names), strict=True))


Block = Headline | Facts | Table | Figure | Cells | Strip


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A heading, a paragraph, and what is under it."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """Where a link finds it."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def percent(value: object, digits: int = 2) -> str:
    """``0.0312`` as ``3.12 %``; a dash where there is no number."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%" if isinstance(value, int | float) else "–"


def summary_section(
    lead: str,
    went_in: Mapping[str, object],
    came_out: Mapping[str, object],
    numbers: Mapping[str, str] | None = None,
) -> Section:
    """The head of a page: what this is, the few numbers that matter, what went in and what came out.

    Args:
        lead: one or two sentences.
        went_in: name to value.
        came_out: name to value, the files among them.
        numbers: what it is, to the value as it shall be shown.
    """
    blocks: list[Block] = []
    if numbers:
        blocks.append(Headline(tuple((value, name) for name, value in numbers.items())))
    for title, facts in (("Went in", went_in), ("Came out", came_out)):
        blocks.append(Facts(tuple((name, str(value)) for name, value in facts.items()), title))
    return Section("Summary", blocks, lead)


def result_section(metrics: Mapping[str, Any], lead: str = "") -> Section:
    """The result table, with the spread over groups.

    Args:
        metrics: of `metrics.json`.
        lead: how the numbers came about: what was held out, what was left out.
    """
    named = {
        "accuracy": ("Accuracy", "forced decision equals the label"),
        "false_negative_rate": ("False-negative rate", "of the good images, lost"),
        "false_negative_rate_by_particles": ("… by particles", "of the good particles, lost"),
        "false_positive_rate": ("False-positive rate", "of the bad images, let through"),
        "review_fraction": ("Review", "a person is asked to look"),
        "accuracy_without_review": (
            "Accuracy without review",
            "where the ensemble does not abstain",
        ),
    }
    rows = [
        (title, percent(metrics[name]), *_spread(metrics, name, percent), meaning)
        for name, (title, meaning) in named.items()
        if name in metrics
    ]
    for name, title, meaning in (
        ("auroc", "AUROC", "a good image outscores a bad one"),
        ("ece", "Calibration error", "ECE: by how much a score is off"),
        ("threshold", "Threshold", "keep at this score or above"),
    ):
        rows.append((title, decimal(metrics[name]), *_spread(metrics, name, decimal), meaning))
    groups = metrics["spread"]["accuracy"]["groups"]
    caption = (
        f"Over {metrics['n']:,} images. Deviation, least and most: over {groups} group"
        f"{'' if groups == 1 else 's'}, each counted once. Error rates are of the forced decision,"
        " review included."
    )
    heads = ("", "all images", "st. dev.", "least", "most", "meaning")
    return Section("Result", [Table(heads, tuple(rows), caption, text=(5,))], lead)


def curves_section(training: Mapping[str, Any]) -> Section:
    """Loss and held-out accuracy over epochs for the three members, from training.json."""
    rows: Sequence[Mapping[str, Any]] = training["curves"]
    drawn = (
        ("loss", "training loss", "Loss on the images each member trains on (its filtered set)"),
        ("val_loss", "held-out loss", "Loss on the fold that was held out"),
        ("val_accuracy", "held-out accuracy", "Accuracy on the fold that was held out"),
    )
    blocks: list[Block] = []
    for quantity, label, caption in drawn:
        values = [row[quantity] for row in rows if row.get(quantity) is not None]
        if values:
            svg = plots.curves(rows, quantity, label, f"curve-{quantity}")
            alt = f"{label} of d1, d2 and d3 over epochs, {values[0]:.3f} to {values[-1]:.3f}"
            blocks.append(Figure(svg, alt, f"{caption}: the mean over its fits, each fit faint."))
    table = []
    for member in MEMBERS:
        mine = [row for row in rows if row["member"] == member]
        if mine:
            fits = len({row.get("fold") for row in mine})
            epochs = max(int(row["epoch"]) for row in mine) - min(int(row["epoch"]) for row in mine)
            speed = [row["images_per_second"] for row in mine if row.get("images_per_second")]
            pace = f"{np.median(speed):,.0f}" if speed else "–"
            table.append((member, str(fits), str(epochs + 1), pace))
    if table:
        heads = ("member", "fits", "epochs", "images/s")
        caption = "Fits: one for each cross-fitting fold and the final one."
        blocks.append(Table(heads, tuple(table), caption, narrow=True))
    lead = (
        "d1 learns from the images as they come, d2 from a mixture of which d1 gets half wrong, d3 from"
        " those on which d1 and d2 disagree. So their losses are over different images."
    )
    return Section("Training", blocks, lead)


def bound_section(bound: Mapping[str, float | None]) -> Section:
    """Each member's error on its own distribution, the bound of boosting, and the vote's real error.

    Args:
        bound: of training.json: `d1`, `d2`, `d3`, `worst`, `limit`, `vote`, and how often d1 was wrong
            (`d1_wrong`) where it should have been (`enough_wrong`).
    """
    where = ("the training distribution", "what d1 gets half wrong", "where d1 and d2 disagree")
    rows = [
        (member, percent(bound.get(member)), place)
        for member, place in zip(MEMBERS, where, strict=True)
    ]
    rows.append(
        (
            "bound 3e²\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}2e³",
            percent(bound.get("limit")),
            "with e the worst of the three",
        )
    )
    rows.append(("vote, measured", percent(bound.get("vote")), "the training distribution"))
    said = [
        "If each member errs at most e on the distribution it was trained for, the vote of three errs"
        " at most 3e²\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}2e³ on the original one (Schapire 1990)."
    ]
    worst, vote, limit = (bound.get(name) for name in ("worst", "vote", "limit"))
    if worst is not None and worst >= 0.5:
        said.append("Here a member errs half the time on its own, so nothing is promised.")
    elif vote is not None and limit is not None:
        said.append(
            "The vote is within the bound."
            if vote <= limit
            else "The vote is worse than the bound, which holds for exact filtering and true errors:"
            " here filtered sets are padded where there are too few images, and errors are measured."
        )
    wrong, enough = bound.get("d1_wrong"), bound.get("enough_wrong")
    if wrong is not None and enough is not None and wrong < enough:
        said.append(
            f"d1 was wrong about {wrong:,.0f} images only, fewer than {enough:,.0f}: boosting had little"
            " to work with, and d2 and d3 add little to d1."
        )
    caption = "All errors are on images that the member was not trained on."
    heads = ("", "error", "measured on")
    table = Table(heads, tuple(rows), caption, text=(2,))
    return Section("Members and vote", [table], " ".join(said))


def roc_section(
    labels: np.ndarray,
    score: np.ndarray,
    threshold: float | np.ndarray,
    bound: float | None = None,
) -> Section:
    """ROC, and the same curve as the trade between what is lost and what is let through.

    Args:
        labels: bool [n], True is keep.
        score: float [n].
        threshold: the ensemble's own, or float [n], one for each image.
        bound: the false-negative rate that must not be exceeded.
    """
    area = accuracy.auroc(labels, score)
    first = Figure(
        plots.roc(labels, score, threshold, "roc"),
        f"ROC curve, area {area:.4f}, with the operating point",
        "ROC. The dot is the threshold that the ensemble brought along; it was not chosen on these images.",
    )
    second = Figure(
        plots.trade(labels, score, threshold, bound, "trade"),
        "Good images lost against bad images let through, logarithmic axes",
        "The same curve where it matters: what a stricter threshold would cost, and a laxer one let in.",
    )
    return Section("Good against bad", [first, second])


def calibration_section(
    labels: np.ndarray,
    score: np.ndarray,
    threshold: float | None,
    review: tuple[float, float] | None,
) -> Section:
    """Reliability diagram with the ECE, and the histogram of scores.

    Args:
        labels: bool [n], True is keep.
        score: float [n].
        threshold: drawn into the histogram; None where folds have several.
        review: (low, high), likewise.
    """
    ece = accuracy.reliability(labels, score).ece
    first = Figure(
        plots.reliability(labels, score, "reliability"),
        f"Reliability diagram, expected calibration error {ece:.3f}",
        "Of images with this score, how many are good? On the diagonal the score is a true probability."
        f" {accuracy.BINS} bins; the area of a dot is its share of images; bars are 95 % intervals.",
    )
    return Section("Calibration", [first, _histogram(score, labels, threshold, review)])


def scores_section(
    score: np.ndarray, threshold: float | None, review: tuple[float, float] | None
) -> Section:
    """The histogram of scores where there are no labels."""
    return Section("Scores", [_histogram(score, None, threshold, review)])


def confusion_section(
    labels: np.ndarray, score: np.ndarray, threshold: float | np.ndarray
) -> Section:
    """Labels against forced decisions, counted."""
    return Section("Confusion", [Cells(accuracy.confusion(labels, score, threshold))])


def views_section(by_view: Mapping[str, Any], bound: float | None = None) -> Section:
    """Where good images are lost: the false-negative rate in each group and in each other view.

    Args:
        by_view: of `metrics.json`.
        bound: the false-negative rate that must not be exceeded.
    """
    blocks: list[Block] = []
    for view, bins in by_view.items():
        if view == "worst" or not bins:
            continue
        worst_first = sorted(bins.items(), key=lambda item: -item[1]["false_negative_rate"])
        shown = worst_first[:MOST_BINS]
        svg = plots.rates(
            [name for name, _ in shown],
            np.array([entry["false_negative_rate"] for _, entry in shown]),
            np.array([entry["keeps"] for _, entry in shown]),
            bound,
            f"view-{len(blocks)}",
        )
        which = f"the {len(shown)} worst of {len(bins)}" if len(shown) < len(bins) else "all"
        alt = f"False-negative rate by {view}; worst {shown[0][0]}"
        blocks.append(
            Figure(svg, alt, f"By {view}, {which}, worst on top; 95 % intervals.", wide=True)
        )
    lead = ""
    if "worst" in by_view:
        worst = by_view["worst"]
        lead = (
            f"A mean can hide a view that is lost. The worst here is {worst['view']} {worst['bin']}:"
            f" {percent(worst['false_negative_rate'])} of its {worst['keeps']:,} good images (95 % interval"
            f" {percent(worst['interval'][0])} to {percent(worst['interval'][1])})."
        )
    return Section("Where good images are lost", blocks, lead)


def bound_held_section(held: Mapping[str, Any], review: Mapping[str, int], n: int) -> Section:
    """How often the bound on good images lost held, and what a review would cost and bring.

    Args:
        held: of `accuracy.bound_held`.
        review: of `metrics.json`.
        n: images judged.
    """
    said = []
    if held["fraction"] is not None:
        low, high = held["interval"]
        again = f" in {held['repeats']} repeats" if held["repeats"] > 1 else ""
        said.append(
            f"In {held['held']} of {held['groups'] * held['repeats']} cases ({held['groups']} groups{again})"
            f" at most {percent(held['bound'], 0)} of a group’s good images were lost:"
            f" {percent(held['fraction'], 0)} (95 % interval {percent(low, 0)} to {percent(high, 0)})."
            f" Groups with fewer than {accuracy.ENOUGH} good images are not counted."
        )
    if review["images"] and review["errors"]:
        said.append(
            f"A person who looks at the {review['images']:,} images in review"
            f" ({percent(review['images'] / n)} of all) finds {review['errors_in_review']:,} of the"
            f" {review['errors']:,} errors"
            f" ({percent(review['errors_in_review'] / review['errors'], 0)})."
        )
    return Section("What was promised", [], " ".join(said))


def ablation_section(ablation: Mapping[str, Any]) -> Section:
    """What image and metadata are worth: hidden, trained without, and shuffled column by column.

    Args:
        ablation: of `metrics.json`.
    """
    shown = (
        ("accuracy", percent),
        ("false_negative_rate", percent),
        ("false_positive_rate", percent),
        ("auroc", decimal),
    )
    titles = {"both": "image and metadata", "image": "image only", "metadata": "metadata only"}
    rows = []
    for how, said in (("retrained", "trained with"), ("hidden", "same ensemble, given")):
        for name, numbers in ablation.get(how, {}).items():
            cells = [f"{said} {titles[name]}"]
            for key, show in shown:
                std = numbers["spread"][key]["std"]
                over = "" if std is None else f" ± {show(std)}"
                cells.append(f"{show(numbers[key])}{over}")
            rows.append(tuple(cells))
    heads = ("", "accuracy", "good images lost", "bad let through", "AUROC")
    caption = "± is the deviation over groups." + (
        " Trained: three networks anew for each fold without the one or the other, each at its own threshold."
        if "retrained" in ablation
        else " What a training without metadata, or without images, is worth: `--cross-validate` says."
    )
    blocks: list[Block] = [Table(heads, tuple(rows), caption)]
    columns = ablation["permutation"]["columns"]
    ranked = sorted(columns.items(), key=lambda item: -item[1]["auroc"])
    blocks.append(
        Table(
            ("shuffled", "AUROC lost", "st. dev.", "accuracy lost", "verdicts changed"),
            tuple(
                (
                    name,
                    decimal(lost["auroc"]),
                    decimal(lost["auroc_std"]),
                    percent(lost["accuracy"]),
                    percent(lost["changed"]),
                )
                for name, lost in ranked[:MOST_BINS]
            ),
            f"Each column shuffled within groups {ablation['permutation']['shuffles']} times over"
            f" {ablation['permutation']['images']:,} images; what two columns share is lost with neither."
            f" Deviation over {ablation['permutation']['deviation']}. "
            + (f"The {MOST_BINS} that matter most." if len(ranked) > MOST_BINS else ""),
        )
    )
    return Section("What image and metadata are worth", blocks)


def angstrom(value: float | None) -> str:
    """``3.456`` as ``3.46 Å``; a dash where there is no number."""
    return "–" if value is None else f"{value:.2f}\N{NO-BREAK SPACE}Å"


def fsc_section(
    curves: HalfMapFsc,
    published: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    lead: str = "",
) -> Section:
    """The curves of two half-maps, and their resolutions by both definitions and at both thresholds.

    Args:
        curves: of the half-maps.
        published: name to frequency (1/Å) and FSC of curves to compare with, the one that matters first.
        lead: a paragraph before.
    """
    looks: dict[str, tuple[str, Any, float]] = {
        "unmasked": ("muted", "-", 1.3),
        "masked": ("d1", (0, (5, 1.6)), 1.3),
        "phase_randomised": ("discard", (0, (1.2, 1.4)), 1.3),
        "corrected": ("ink", "-", 2.0),
    }
    lines = [
        plots.Line(name.replace("_", " "), curves.frequency, curve, colour, style, width=width)
        for name, curve in curves.curves.items()
        for colour, style, width in [looks[name]]
    ]
    rows = [
        _resolutions(line.label, line.x, line.y)
        for line in reversed(lines)
        if line.label != "phase randomised"
    ]
    for name, (frequency, curve) in (published or {}).items():
        rows.append(_resolutions(name, frequency, curve))
        within = frequency <= curves.frequency[-1] * 1.0001
        lines.append(
            plots.Line(name, frequency[within], curve[within], "review", (0, (6, 2, 1, 2)))
        )
    figure = Figure(
        plots.shells(lines, "fsc"),
        f"FSC curves; {rows[0][0]} {rows[0][2]} at 0.143",
        "Against spatial frequency, with the resolution above."
        + (
            f" Phases were randomised from {angstrom(curves.randomised_from)}; the corrected curve is the"
            " masked one less what the mask alone correlates."
            if curves.randomised_from
            else ""
        ),
        wide=True,
    )
    heads = ("curve", "0.143, last shell", "0.143, crossing", "0.5, last shell", "0.5, crossing")
    caption = (
        "Last shell: of the last shell before the first one below the threshold, as RELION gives it."
        " Crossing: linear between that shell and the next. ≤ where the curve ends at Nyquist."
    )
    return Section("Fourier shell correlation", [figure, Table(heads, tuple(rows), caption)], lead)


def sets_section(lines: Sequence[plots.Line], rows: Sequence[tuple[str, ...]]) -> Section:
    """FSC of the maps of several sets of particles, one curve each, and a row of numbers for each."""
    figure = Figure(
        plots.shells(lines, "sets"),
        "FSC of the maps of the kept, of all, of the discarded and of random subsets",
        "FSC between half-maps, corrected for the mask where there is one. Random subsets are as large as"
        " the kept; their band is from the worst to the best.",
        wide=True,
    )
    heads = (
        "particles in the map",
        "how many",
        "0.143, last shell",
        "0.143, crossing",
        "0.5, crossing",
        "true map, 0.5",
        "area ratio",
    )
    caption = (
        "Resolutions. A choice that helps has the kept at least as good as all; one that is no better than"
        " chance has them as good as random subsets. Area ratio: see Directions."
    )
    lead = (
        "Half-maps of particles that were chosen for resembling a reference can agree about that reference:"
        " the choice sees both halves. So a gain here is a gain only if it is also one against something"
        " that the choice did not know."
    )
    return Section("Maps of the choices", [figure, Table(heads, tuple(rows), caption)], lead)


def truth_section(lines: Sequence[plots.Line]) -> Section:
    """FSC against the true map, which only simulated particles have."""
    figure = Figure(
        plots.shells(lines, "truth", thresholds=(0.5,), label="FSC with the true map"),
        "FSC with the true map of the kept, of all, of the discarded and of random subsets",
        "At 0.5, since the true map has no noise. What half-maps share without its being true, such as a"
        " bias of the choice, is no gain here.",
        wide=True,
    )
    return Section("Against the truth", [figure])


def reslog_section(lines: Sequence[plots.Line]) -> Section:
    """Resolution against number of particles, as squared spatial frequency against its logarithm."""
    svg = plots.against(lines, "reslog", "particles", "1/resolution², 1/Å²", logarithmic=True)
    figure = Figure(
        svg,
        "Squared resolution against number of particles",
        "From a sixteenth of the particles to all (ResLog; Stagg et al. 2014). The slope is 2/B (Rosenthal"
        " and Henderson 2003): a lower B reaches a resolution with fewer particles.",
    )
    return Section("Resolution and number of particles", [figure])


def similarity_sections(
    alike: Sequence[ClassLikeness], projected: Mapping[int, Likeness], shown: int
) -> list[Section]:
    """Distributions over classes, each number beside its two references, and the worst as pictures.

    Args:
        alike: one for each class.
        projected: by class, of the average of the kept with the projection of the map that is most like it.
        shown: how many of the worst.
    """
    kinds = (
        ("ours and the person's", "likeness", "ink", "-"),
        ("as many removed at random", "chance", "d1", (0, (5, 1.6))),
        ("two halves of the person's", "floor", "discard", (0, (1.2, 1.4))),
    )
    titles = {
        "mse": "squared difference (lower is more alike)",
        "ssim": "SSIM (higher is more alike)",
        "frc": "FRC up to the resolution (higher is more alike)",
    }
    blocks: list[Block] = []
    rows = []
    part = np.linspace(0, 1, len(alike)) if len(alike) > 1 else np.array([0.5])
    for number, title in titles.items():
        values = {
            label: np.array([getattr(getattr(one, kind), number) for one in alike])
            for label, kind, _, _ in kinds
        }
        lines = [
            plots.Line(label, part, np.sort(values[label]), colour, style)
            for label, _, colour, style in kinds
        ]
        if projected:
            values["ours and the map's projection"] = np.array(
                [getattr(one, number) for one in projected.values()]
            )
        svg = plots.against(lines, f"similarity-{number}", "fraction of classes", number.upper())
        alt = f"Distribution over classes of {title}"
        blocks.append(
            Figure(svg, alt, f"{title[:1].upper()}{title[1:]} over {len(alike)} classes, sorted.")
        )
        for label, found in values.items():
            low, median, high = np.quantile(found, (0.05, 0.5, 0.95))
            rows.append(
                (f"{number.upper()}, {label}", f"{median:.3f}", f"{low:.3f}", f"{high:.3f}")
            )
    caption = (
        f"SSIM: uniform window of {similarity.WINDOW} px, data range {similarity.DATA_RANGE:g} (±3 standard"
        " deviations), mean inside the mask. At random: the person's own, less as many random particles as"
        " they kept and we did not. Two halves: of the person's own; each has half the particles, so a"
        " selection that lost few lies well below its MSE."
    )
    blocks.append(Table(("", "median", "5 %", "95 %"), tuple(rows), caption))
    worst = sorted(alike, key=lambda one: one.chance.mse - one.likeness.mse)[:shown]
    strips = [
        Strip(
            f"Class {one.number}",
            "discard" if one.likeness.mse > 2 * one.chance.mse else "review",
            one.images,
            np.array([one.likeness.mse, one.chance.mse]),
            ["ours", "the person's"],
            f"Ours ({one.ours:,} particles) and the person's ({one.person:,}), {one.shared:,} in common:"
            f" MSE {one.likeness.mse:.4f}, at random {one.chance.mse:.4f}.",
        )
        for one in worst
    ]
    lead = (
        "What we kept should look no less like the person's average than that average does with as many"
        " particles removed at random. Where it does, the choice changes what the class shows."
    )
    return [
        Section("Likeness of class averages", blocks, lead),
        Section("Worst classes", strips, "Farthest beyond chance first."),
    ]


def directions_section(
    views: Mapping[str, Directional], frequency: np.ndarray, lead: str = ""
) -> Section:
    """FSC in cones: how far it depends on direction.

    Args:
        views: name to the directional FSC of each map, the one that matters first.
        frequency: of their curves, 1/Å.
        lead: a warning.
    """
    colours = ("ink", "d1", "discard", "review", "d2")
    lines = [
        plots.Line(
            f"{name}: mean of cones, and their range",
            frequency,
            view.fsc.mean(0),
            colour,
            band=np.stack([view.fsc.min(0), view.fsc.max(0)]),
        )
        for (name, view), colour in zip(views.items(), colours, strict=False)
    ]
    rows = []
    for name, view in views.items():
        known = view.resolution[np.isfinite(view.resolution)]
        x, y, z = view.worst
        rows.append(
            (
                name,
                angstrom(float(known.min()) if len(known) else None),
                angstrom(float(known.max()) if len(known) == len(view.resolution) else None),
                f"{view.area_ratio:.3f}",
                f"{x:.2f}, {y:.2f}, {z:.2f}",
            )
        )
    caption = (
        f"{fsc.DIRECTIONS} cones of {fsc.CONE:.0f}° half-angle; resolution at 0.143. Area ratio: the smallest"
        " area under a cone's curve over the largest; 1 where all directions are alike."
    )
    heads = ("map", "best cone", "worst cone", "area ratio", "worst direction x, y, z")
    figure = Figure(
        plots.shells(lines, "directions", thresholds=(0.143,)),
        f"Directional FSC; area ratio {rows[0][3]}",
        "FSC in cones: the mean over directions, and from the worst to the best of them.",
        wide=True,
    )
    return Section("Directions", [figure, Table(heads, tuple(rows), caption)], lead)


def _resolutions(name: str, frequency: np.ndarray, curve: np.ndarray) -> tuple[str, ...]:
    cells = [name]
    for threshold in fsc.THRESHOLDS:
        found = fsc.resolution(frequency, curve, threshold)
        sign = "≤\N{NO-BREAK SPACE}" if found.nyquist else ""
        cells += [sign + angstrom(found.last_shell), sign + angstrom(found.interpolated)]
    return tuple(cells)


def gallery_section(strips: Sequence[Strip], title: str = "Gallery", lead: str = "") -> Section:
    """Images with their scores, a strip for each verdict or kind of error."""
    return Section(title, list(strips), lead)


def table_section(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    lead: str = "",
) -> Section:
    """Any table: the first column is text, the others are numbers."""
    return Section(title, [Table(tuple(columns), tuple(map(tuple, rows)), caption)], lead)


def command() -> str:
    """What was typed, as it can be typed again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["cryoray" if program.endswith(".py") else program, *sys.argv[1:]])


def provenance_section(
    command: str,
    settings: Sequence[BaseModel],
    digests: Mapping[str, str] | None = None,
) -> Section:
    """How to get this again: command, versions, digests, and every setting that was in force.

    Args:
        command: as a person would type it.
        settings: the sections of settings in force; what is kept from ``repr`` (tokens) stays out.
        digests: of what went in and came out.
    """
    versions = [f"Python {platform.python_version()}"]
    for program in PROGRAMS:
        try:
            versions.append(f"{program} {metadata.version(program)}")
        except metadata.PackageNotFoundError:  # a machine with torch alone has no ray
            continue
    pairs = [
        ("command", command),
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("machine", f"{platform.system()} {platform.machine()}"),
        ("versions", ", ".join(versions)),
        *(digests or {}).items(),
    ]
    flat = [pair for model in settings for pair in _flat(model)]
    return Section("How this was made", [Facts(tuple(pairs)), Facts(tuple(flat), code=True)])


def _spread(metrics: Mapping[str, Any], name: str, show: Any) -> tuple[str, str, str]:
    spread = metrics["spread"].get(name, {})
    std, least, most = (show(spread.get(key)) for key in ("std", "min", "max"))
    return std, least, most


def decimal(value: object) -> str:
    """Four decimals; a dash where there is no number."""
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def _histogram(
    score: np.ndarray,
    labels: np.ndarray | None,
    threshold: float | None,
    review: tuple[float, float] | None,
) -> Figure:
    band = ""
    if review is not None and review[1] > review[0]:
        band = f" Between {review[0]:.3f} and {review[1]:.3f} a person is asked to look."
    return Figure(
        plots.scores(score, labels, threshold, review, "scores"),
        "Histogram of scores, logarithmic counts",
        f"Scores of {len(score):,} images.{band}",
    )


def _flat(model: BaseModel, prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            pairs += _flat(value, f"{prefix}{name}.")
        elif field.repr:
            pairs.append((f"{prefix}{name}", _setting(value)))
    return pairs


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
