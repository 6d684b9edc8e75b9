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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ldm.evaluation.records import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without black and yellow
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = "os^DvP*X<>"
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
    """One cell: its label, the series that it belongs to (its method), x, and the figure that is y."""

    label: str
    series: str
    x: float
    y: Figure


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
        canvas = Canvas(figsize=(5.6, 4.2), layout="constrained")
        axes = canvas.add_subplot()
        for number, series in enumerate(dict.fromkeys(point.series for point in self.points)):
            own = [point for point in self.points if point.series == series]
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            x, y = [point.x for point in own], [point.y.value for point in own]
            look: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5, "lw": 1, "elinewidth": 0.7}
            axes.errorbar(x, y, yerr=_errors(own), label=series, **look)
        ringed = [point for point in self.points if point.label in self.front]
        axes.scatter(
            [point.x for point in ringed], [point.y.value for point in ringed], s=110, fc="none", ec="#000000", lw=0.9
        )
        axes.set_xlabel(self.x_name)
        axes.set_ylabel(self.y_name)
        axes.grid(alpha=0.25)
        canvas.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
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
