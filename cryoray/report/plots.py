"""The report's plots: small SVGs that take their colours and type from the page, day and night."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from importlib import resources
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cryoray.metrics import accuracy

#: Names of the page's CSS variables, each drawn in a colour that stands for it and nothing else.
_NAMES = ("ink", "muted", "rule", "paper", "keep", "discard", "review", "d1", "d2", "d3")
_PLACEHOLDER = {name: f"#{0xA1B200 + index:06x}" for index, name in enumerate(_NAMES)}
#: The colours that plots are drawn in now.
_COLOUR = dict(_PLACEHOLDER)

#: Members differ in line style too, for print and for eyes that do not tell the colours apart.
_STYLE = {"d1": "-", "d2": (0, (5, 1.6)), "d3": (0, (1.2, 1.4))}


def _rc() -> dict[str, Any]:
    """How matplotlib draws, in the colours of now."""
    return {
        "svg.fonttype": "none",  # text stays text: searchable, and set in the page's own type
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _COLOUR["muted"],
        "axes.linewidth": 0.7,
        "axes.labelcolor": _COLOUR["ink"],
        "axes.axisbelow": True,
        "axes.xmargin": 0.02,
        "text.color": _COLOUR["ink"],
        "xtick.color": _COLOUR["muted"],
        "ytick.color": _COLOUR["muted"],
        "xtick.labelcolor": _COLOUR["ink"],
        "ytick.labelcolor": _COLOUR["ink"],
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.minor.size": 1.8,
        "ytick.minor.size": 1.8,
        "grid.color": _COLOUR["rule"],
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.handlelength": 2.4,
    }


P = ParamSpec("P")


class Drawing(Markup):
    """An inline SVG in the page's colours, which can be had as files of its own as well.

    Attributes:
        name: of the files.
        columns: what is drawn, as columns of a table; they may be of different lengths.
        figure: of matplotlib.
        again: draws it anew.
    """

    name: str
    columns: Mapping[str, Sequence[object]]
    figure: Figure
    again: Callable[[], Drawing]

    def svg(self) -> str:
        """A whole SVG file in the page's colours of the day."""
        text = str(self)
        for name, colour in _daylight().items():
            text = text.replace(f"var(--{name})", colour)
        head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, Arial, sans-serif"'
        return text.replace("<svg", head, 1).replace(' aria-hidden="true"', "", 1)

    def png(self, dots_per_inch: int = 200) -> bytes:
        """The same as a picture."""
        with _colours(_daylight()):
            figure = self.again().figure
        figure.set_facecolor(_daylight()["paper"])
        file = io.BytesIO()
        figure.set_dpi(dots_per_inch)
        with matplotlib.rc_context(_rc()):
            FigureCanvasAgg(figure).print_png(file)
        return file.getvalue()


@cache
def _daylight() -> dict[str, str]:
    """The page's colours by day, from its style sheet."""
    style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    first = style[: style.index("@media")]
    return {name: re.search(rf"--{name}: (#\w+);", first)[1] for name in _NAMES}  # type: ignore[index]


@contextmanager
def _colours(palette: Mapping[str, str]) -> Iterator[None]:
    _COLOUR.update(palette)
    try:
        yield
    finally:
        _COLOUR.update(_PLACEHOLDER)


def _in_the_pages_manner(draw: Callable[P, Drawing]) -> Callable[P, Drawing]:
    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawing:
        with matplotlib.rc_context(_rc()):
            made = draw(*args, **kwargs)
        made.again = lambda: drawn(*args, **kwargs)
        return made

    return drawn


class _Plot:
    """One set of axes that becomes inline SVG."""

    def __init__(self, width: float = 3.55, height: float = 2.75) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes = self.figure.subplots()
        self.axes.grid(visible=True)

    def svg(self, name: str, columns: Mapping[str, Any] | None = None) -> Drawing:
        """The figure as an ``<svg>`` element whose ids begin with ``name``; ``columns`` is what it shows."""
        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            FigureCanvasSVG(self.figure).print_svg(
                text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
            )
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r"font-family: [^;]*; ?", "", svg)  # inherited from the page
        svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
        svg = re.sub(r'\bid="', f'id="{name}-', svg)
        svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
        svg = re.sub(r'(<svg) .*?(viewBox="[^"]*").*?>', r'\1 \2 aria-hidden="true">', svg, count=1)
        svg = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', _rounded, svg)
        for variable, colour in _PLACEHOLDER.items():
            svg = svg.replace(colour, f"var(--{variable})")
        drawing = Drawing(re.sub(r"\s*\n\s*", " ", svg))
        drawing.name, drawing.columns, drawing.figure = name, columns or {}, self.figure
        return drawing


def _rounded(attribute: re.Match[str]) -> str:
    """A hundredth of a point is plenty."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


def _percent(value: float, _: object = None) -> str:
    return f"{100 * value:.3g}%"


@_in_the_pages_manner
def curves(rows: Sequence[Mapping[str, Any]], quantity: str, label: str, name: str) -> Drawing:
    """One quantity over epochs, for each member: the mean over its fits, and each fit faintly.

    Args:
        rows: the `curves` of training.json.
        quantity: the key to draw; entries where it is None are left out.
        label: of the vertical axis.
        name: prefix of ids, unique in the page.
    """
    plot = _Plot()
    axes = plot.axes
    for member in sorted({row["member"] for row in rows}):
        fits: dict[object, dict[int, float]] = {}
        for row in rows:
            if row["member"] == member and row.get(quantity) is not None:
                fits.setdefault(row.get("fold"), {})[int(row["epoch"])] = float(row[quantity])
        if not fits:
            continue
        colour, style = _COLOUR[member], _STYLE[member]
        if len(fits) > 1:
            for fit in fits.values():
                axes.plot(list(fit), list(fit.values()), color=colour, lw=0.7, alpha=0.35)
        epochs = sorted(set().union(*fits.values()))
        mean = [np.mean([fit[epoch] for fit in fits.values() if epoch in fit]) for epoch in epochs]
        marker = "o" if len(epochs) < 3 else ""
        axes.plot(epochs, mean, color=colour, ls=style, label=member, marker=marker, ms=3)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity == "val_accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    if axes.lines:
        axes.legend(loc="best")
    keys = ("member", "fold", "epoch", quantity)
    return plot.svg(name, {key: [row.get(key) for row in rows] for key in keys})


@_in_the_pages_manner
def roc(labels: np.ndarray, score: np.ndarray, threshold: float | np.ndarray, name: str) -> Drawing:
    """The ROC curve and, on it, the operating point."""
    fpr, tpr, _ = accuracy.roc_curve(labels, score)
    x, y = _operating_point(labels, score, threshold)
    plot = _Plot()
    axes = plot.axes
    axes.plot([0, 1], [0, 1], color=_COLOUR["muted"], lw=0.8, ls=(0, (2, 2)))
    axes.plot(fpr, tpr, color=_COLOUR["ink"], clip_on=False)
    _dot(axes, x, y)
    axes.annotate(
        f"operating point\n{_percent(y)} of good kept\n{_percent(x)} of bad let through",
        (x, y),
        (max(x, 0) + 0.1, min(y, 1) - 0.14),
        va="top",
        bbox={"facecolor": _COLOUR["paper"], "edgecolor": "none", "pad": 1.5},
        arrowprops={"arrowstyle": "-", "color": _COLOUR["muted"], "lw": 0.7, "shrinkB": 4},
    )
    axes.text(0.97, 0.05, f"AUROC {accuracy.auroc(labels, score):.4f}", ha="right", weight="bold")
    axes.set(xlabel="bad images let through", ylabel="good images kept", xlim=(0, 1), ylim=(0, 1))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    return plot.svg(name, {"bad_let_through": fpr, "good_kept": tpr})


@_in_the_pages_manner
def trade(
    labels: np.ndarray,
    score: np.ndarray,
    threshold: float | np.ndarray,
    bound: float | None,
    name: str,
) -> Drawing:
    """Good images lost for bad ones let through, on logarithmic axes: the corner that matters.

    Args:
        labels: bool [n].
        score: float [n].
        threshold: the operating one.
        bound: the false-negative rate that must not be exceeded, drawn as a line.
        name: prefix of ids, unique in the page.
    """
    fpr, tpr, _ = accuracy.roc_curve(labels, score)
    x, y = _operating_point(labels, score, threshold)
    # half an image stands for none, which a logarithm has no place for
    least_x, least_y = 0.5 / max((~labels).sum(), 5), 0.5 / max(labels.sum(), 5)
    least_y = min(least_y, bound / 2) if bound else least_y
    plot = _Plot()
    axes = plot.axes
    axes.set(xscale="log", yscale="log", xlim=(least_x, 1), ylim=(least_y, 1))
    axes.plot(np.maximum(fpr, least_x), np.maximum(1 - tpr, least_y), color=_COLOUR["ink"])
    if bound:
        axes.axhline(bound, color=_COLOUR["discard"], lw=0.9, ls=(0, (4, 2)))
        axes.text(least_x * 1.15, bound * 1.1, f"bound {_percent(bound)}", color=_COLOUR["discard"])
    _dot(axes, max(x, least_x), max(1 - y, least_y))
    axes.set(xlabel="bad images let through", ylabel="good images lost")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=5))
        axis.set_major_formatter(FuncFormatter(_percent))
        axis.set_minor_formatter(NullFormatter())
    return plot.svg(name, {"bad_let_through": fpr, "good_lost": 1 - tpr})


@_in_the_pages_manner
def reliability(labels: np.ndarray, score: np.ndarray, name: str) -> Drawing:
    """Fraction of good images at each score, with 95% intervals, beside what the score promises."""
    table = accuracy.reliability(labels, score)
    low, high = accuracy.wilson(table.good * table.count, table.count)
    plot = _Plot()
    axes = plot.axes
    axes.plot([0, 1], [0, 1], color=_COLOUR["muted"], lw=0.8, ls=(0, (2, 2)))
    axes.vlines(table.score, low, high, color=_COLOUR["ink"], lw=1)
    size = 8 + 60 * table.count / table.count.max()
    axes.scatter(table.score, table.good, s=size, color=_COLOUR["ink"], zorder=3, clip_on=False)
    axes.text(0.97, 0.05, f"ECE {table.ece:.3f}", ha="right", weight="bold")
    axes.set(xlabel="score", ylabel="fraction good", xlim=(0, 1), ylim=(0, 1))
    columns = {"score": table.score, "good": table.good, "low": low, "high": high}
    return plot.svg(name, columns | {"images": table.count})


@_in_the_pages_manner
def scores(
    score: np.ndarray,
    labels: np.ndarray | None,
    threshold: float | None,
    review: tuple[float, float] | None,
    name: str,
) -> Drawing:
    """How scores are distributed, by label where there are labels, with threshold and review band."""
    plot = _Plot()
    axes = plot.axes
    edges = np.linspace(0, 1, 41).tolist()
    if labels is None:
        kinds = [("images", "ink", np.ones(len(score), bool))]
    else:
        kinds = [("labelled keep", "keep", labels), ("labelled discard", "discard", ~labels)]
    for label, colour, rows in kinds:
        axes.hist(score[rows], edges, color=_COLOUR[colour], alpha=0.22)
        axes.hist(score[rows], edges, histtype="step", color=_COLOUR[colour], lw=1.3, label=label)
    if review is not None and review[1] > review[0]:
        axes.axvspan(*review, color=_COLOUR["review"], alpha=0.2, lw=0, label="review")
    if threshold is not None:
        axes.axvline(threshold, color=_COLOUR["ink"], lw=1, label=f"threshold {threshold:.3f}")
    axes.set(yscale="log", xlabel="score", ylabel="images", xlim=(0, 1))
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    plot.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.4)
    counts = {label: np.histogram(score[rows], edges)[0] for label, _, rows in kinds}
    return plot.svg(name, {"score_from": edges[:-1], "score_to": edges[1:], **counts})


@_in_the_pages_manner
def rates(
    names: Sequence[str], rate: np.ndarray, n: np.ndarray, bound: float | None, name: str
) -> Drawing:
    """A rate in each of some bins, worst on top, with 95% intervals.

    Args:
        names: of the bins.
        rate: float [b].
        n: int [b], the images that each is a rate of.
        bound: drawn as a line.
        name: prefix of ids, unique in the page.
    """
    low, high = accuracy.wilson(rate * n, n)
    place = np.arange(len(names))[::-1]
    plot = _Plot(7.3, 0.75 + 0.19 * len(names))
    axes = plot.axes
    axes.grid(visible=False, axis="y")
    axes.hlines(place, low, high, color=_COLOUR["muted"], lw=1)
    axes.scatter(rate, place, s=16, color=_COLOUR["ink"], zorder=3, clip_on=False)
    if bound is not None:
        axes.axvline(bound, color=_COLOUR["discard"], lw=0.9, ls=(0, (4, 2)))
    axes.set(
        yticks=place,
        yticklabels=list(map(_short, names)),
        xlabel="good images lost",
        ylim=(-0.7, len(names) - 0.3),
    )
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    columns = {"bin": names, "rate": rate, "low": low, "high": high, "images": n}
    return plot.svg(name, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One curve of a plot.

    Attributes:
        label: in the legend.
        x: float [n].
        y: float [n].
        colour: one of the page's.
        style: of matplotlib.
        band: float [2, n], least and most, drawn faintly.
        width: of the line, pt.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = "ink"
    style: Any = "-"
    band: np.ndarray | None = None
    width: float = 1.6


@_in_the_pages_manner
def shells(
    lines: Sequence[Line],
    name: str,
    thresholds: Sequence[float] = (0.143, 0.5),
    label: str = "Fourier shell correlation",
    *,
    wide: bool = True,
) -> Drawing:
    """Correlations against spatial frequency in 1/Å, with an axis in Å above.

    Args:
        lines: the curves; ``x`` is 1/Å.
        name: prefix of ids, unique in the page, and name of the files.
        thresholds: drawn as lines.
        label: of the vertical axis.
        wide: over the page's whole width.
    """
    plot = _Plot(*((7.3, 3.5) if wide else (3.55, 3.0)))
    axes = plot.axes
    end = max(float(line.x[-1]) for line in lines)
    low = min(-0.05, max(-0.3, min(float(np.nanmin(line.y)) for line in lines) - 0.03))
    axes.axhline(0, color=_COLOUR["muted"], lw=0.7)
    for threshold in thresholds:
        axes.axhline(threshold, color=_COLOUR["muted"], lw=0.8, ls=(0, (2, 2)))
        axes.text(0.005 * end, threshold + 0.012, f"{threshold:g}", color=_COLOUR["muted"])
    for line in lines:
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=_COLOUR[line.colour], alpha=0.2, lw=0)
        axes.plot(
            line.x,
            line.y,
            color=_COLOUR[line.colour],
            ls=line.style,
            lw=line.width,
            label=line.label,
        )
    axes.set(xlabel="spatial frequency, 1/Å", ylabel=label, xlim=(0, end), ylim=(low, 1.02))
    above = axes.secondary_xaxis("top")
    places = [part * end for part in (0.2, 0.4, 0.6, 0.8, 1.0)]
    above.set_xticks(places, [f"{1 / place:.3g}" for place in places])
    above.set_xlabel("resolution, Å")
    above.spines["top"].set_visible(True)
    plot.figure.legend(loc="outside lower center", ncols=4 if wide else 2, columnspacing=1.6)
    return plot.svg(name, _columns(lines, "frequency"))


@_in_the_pages_manner
def against(
    lines: Sequence[Line],
    name: str,
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = False,
    points: bool = True,
) -> Drawing:
    """Numbers against numbers, as points on lines or as points alone.

    Args:
        lines: the curves.
        name: prefix of ids, unique in the page, and name of the files.
        x_label: of the horizontal axis.
        y_label: of the vertical one.
        logarithmic: the horizontal axis.
        points: joined by lines; else points alone.
    """
    plot = _Plot()
    for line in lines:
        colour = _COLOUR[line.colour]
        style = line.style if points else ""
        plot.axes.plot(
            line.x, line.y, color=colour, ls=style, marker="o", ms=3.5, label=line.label, lw=1.2
        )
        if line.band is not None:
            plot.axes.vlines(line.x, *line.band, color=colour, lw=1)
    plot.axes.set(xlabel=x_label, ylabel=y_label)
    if logarithmic:
        plot.axes.set_xscale("log")
        plot.axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        plot.axes.xaxis.set_minor_formatter(NullFormatter())
    if len(lines) > 1 or lines[0].label:
        plot.axes.legend(loc="best")
    return plot.svg(name, _columns(lines, "x"))


def _columns(lines: Sequence[Line], x: str) -> dict[str, Any]:
    """Each line's columns; lines over the same abscissa share it."""
    columns: dict[str, Any] = {}
    for line in lines:
        same = x in columns and np.array_equal(columns[x], line.x)
        columns.update({} if same else {x if x not in columns else f"{x} of {line.label}": line.x})
        columns[line.label or "y"] = line.y
        if line.band is not None:
            columns[f"{line.label}, least"], columns[f"{line.label}, most"] = line.band
    return columns


def _short(name: str, most: int = 44) -> str:
    """A long name without its middle: its end tells it from its siblings."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def _operating_point(
    labels: np.ndarray, score: np.ndarray, threshold: float | np.ndarray
) -> tuple[float, float]:
    counts = accuracy.confusion(labels, score, threshold)
    return (
        counts.passed / max(counts.passed + counts.removed, 1),
        counts.kept / max(counts.kept + counts.lost, 1),
    )


def _dot(axes: Any, x: float, y: float) -> None:
    axes.plot(
        [x],
        [y],
        "o",
        ms=6,
        color=_COLOUR["keep"],
        markeredgecolor=_COLOUR["paper"],
        clip_on=False,
        zorder=4,
    )
