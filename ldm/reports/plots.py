"""Plots as SVG that take the colours of the page they stand in."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ldm.evaluation.records import MetricValue

# Okabe and Ito's colours, which the colour-blind can tell apart, without black and yellow
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = "os^DvP*X<>"
_STYLES = ("-", "--", ":", "-.")
_LABEL = 36  # characters that fit beside an axis; the caption has them all
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ldm",
    "font.family": "sans-serif",
    "font.size": 10,
}
_SETTINGS |= {"text.parse_math": False}  # a label is what a user wrote


@dataclass(frozen=True, slots=True)
class Point:
    """One cell: its label, the series that it belongs to (its method), x, the figure that is y, and its sampler."""

    label: str
    series: str
    x: float
    y: MetricValue
    under: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a curve to be told apart, and what to say of it."""

    text: str
    x: float
    y: float


def lines(
    curves: Sequence[Line], x_name: str, y_name: str, *, logarithmic: bool = False, mark: Mark | None = None
) -> str:
    """An SVG element of curves over one axis."""
    with matplotlib.rc_context(_SETTINGS):
        canvas = Canvas(figsize=(5.6, 3.2), layout="constrained")
        axes = canvas.add_subplot()
        for number, curve in enumerate(curves):
            axes.plot(curve.x, curve.y, color=_COLOURS[number % len(_COLOURS)], lw=1.2, label=curve.name)
            if len(curve.x) < 3:
                axes.plot(curve.x, curve.y, color=_COLOURS[number % len(_COLOURS)], marker="o", ls="")
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x_name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_ylabel(y_name if len(y_name) <= _LABEL else re.sub(r"\[[^]]*\]", "", y_name)[:_LABEL])
        axes.grid(alpha=0.25)
        if mark is not None:
            axes.scatter([mark.x], [mark.y], s=110, fc="none", ec="#000000", lw=0.9)
            axes.set_title(mark.text, fontsize=9, loc="right")
        if len(curves) > 1:
            axes.legend(fontsize=8, frameon=False)
        return _svg(canvas, f"{y_name} against {x_name}. {_told(curves)}{f' {mark.text}.' if mark else ''}")


def _told(curves: Sequence[Line]) -> str:
    """The ends of each curve in words, for those who do not see them."""
    ends = [f"{line.name}: {line.y[0]:.4g} at {line.x[0]:g}, {line.y[-1]:.4g} at {line.x[-1]:g}" for line in curves]
    return "; ".join(ends) + "."


@dataclass(frozen=True)
class Scatter:
    """Points under names of the axes: a line a series in the order of x, error bars, rings around those in `front`."""

    points: Sequence[Point]
    x_name: str
    y_name: str
    front: Collection[str] = ()

    def svg(self) -> str:
        """An SVG element."""
        with matplotlib.rc_context(_SETTINGS):
            return _svg(self._drawn(), f"{self.y_name} against {self.x_name}")

    def png(self) -> bytes:
        """A PNG file on white."""
        buffer = io.BytesIO()
        with matplotlib.rc_context(_SETTINGS):
            FigureCanvasAgg(self._drawn()).print_figure(buffer, format="png", dpi=150)
        return buffer.getvalue()

    def _drawn(self) -> Canvas:
        """A colour and a marker a series, a kind of line a sampler; the names below, as many a row as there is room."""
        series = list(dict.fromkeys(point.series for point in self.points))
        unders = list(dict.fromkeys(point.under for point in self.points))
        looks: dict[str, dict[str, Any]] = {
            name: {"color": _COLOURS[n % len(_COLOURS)], "marker": _MARKERS[n % len(_MARKERS)], "ms": 5}
            for n, name in enumerate(series)
        }
        ways: dict[str, dict[str, Any]] = {
            name: {"ls": _STYLES[n % len(_STYLES)], "mfc": None if n == 0 else "none"} for n, name in enumerate(unders)
        }
        names = [Line2D([], [], ls="", label=name, **looks[name]) for name in series]
        if len(unders) > 1:
            names += [Line2D([], [], color="#000000", marker="o", label=name, **ways[name]) for name in unders]
        columns = 2 if max(len(str(name.get_label())) for name in names) <= _LABEL else 1
        canvas = Canvas(figsize=(5.6, 3.3 + 0.16 * -(-len(names) // columns)), layout="constrained")
        axes = canvas.add_subplot()
        for name in series:
            for under in unders:
                own = [point for point in self.points if (point.series, point.under) == (name, under)]
                x, y = [point.x for point in own], [point.y.value for point in own]
                axes.errorbar(x, y, yerr=_errors(own), lw=1, elinewidth=0.7, **looks[name], **ways[under])
        ringed = [point for point in self.points if point.label in self.front]
        axes.scatter(
            [point.x for point in ringed], [point.y.value for point in ringed], s=110, fc="none", ec="#000000", lw=0.9
        )
        axes.set_xlabel(self.x_name)
        axes.set_ylabel(self.y_name)
        axes.grid(alpha=0.25)
        canvas.legend(handles=names, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
        return canvas


def _svg(canvas: Canvas, name: str) -> str:
    buffer = io.StringIO()
    canvas.patch.set_alpha(0)
    for axes in canvas.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    return _themed(buffer.getvalue(), name)


def _errors(points: Sequence[Point]) -> list[list[float]] | None:
    """Lengths of the error bars below and above."""
    if any(point.y.interval is None for point in points):
        return None
    ends = [(point.y.value, *(point.y.interval or (0.0, 0.0))) for point in points]
    return [[max(0.0, value - low) for value, low, _ in ends], [max(0.0, high - value) for value, _, high in ends]]


def _themed(svg: str, name: str) -> str:
    """The bare element, black as the text's colour, with a name for those who do not see it; ids are the plot's own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("#000000", "currentColor").replace("<text ", '<text fill="currentColor" ')
    title = name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
