"""Plots as SVG in the colours of the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ldm.evaluation.records import MetricValue

# Okabe and Ito 2008: distinct to colour-blind eyes; without black and yellow
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = "os^DvP*X<>"
_STYLES = ("-", "--", ":", "-.")
_RING: dict[str, Any] = {"s": 110, "fc": "none", "ec": "#000000", "lw": 0.9}
_MAX_LABEL = 36  # characters that fit beside an axis; the caption has the whole label
_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "ldm", "font.family": "sans-serif"}
_SETTINGS |= {"font.size": 10, "text.parse_math": False}  # a label may be text of the user


@dataclass(frozen=True, slots=True)
class Point:
    """One run: its label, its series (the method), x, the metric value that is y, and its sampler and steps."""

    label: str
    series: str
    x: float
    y: MetricValue
    solver: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A highlighted point of a curve, and its text."""

    text: str
    x: float
    y: float


def lines(
    curves: Sequence[Line], x_name: str, y_name: str, *, logarithmic: bool = False, mark: Mark | None = None
) -> str:
    """An SVG element of curves over one axis."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
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
        axes.set_ylabel(y_name if len(y_name) <= _MAX_LABEL else re.sub(r"\[[^]]*\]", "", y_name)[:_MAX_LABEL])
        axes.grid(alpha=0.25)
        if mark is not None:
            axes.scatter([mark.x], [mark.y], **_RING)
            axes.set_title(mark.text, fontsize=9, loc="right")
        if len(curves) > 1:
            axes.legend(fontsize=8, frameon=False)
        ends = [f"{line.name}: {line.y[0]:.4g} at {line.x[0]:g}, {line.y[-1]:.4g} at {line.x[-1]:g}" for line in curves]
        return _svg(figure, f"{y_name} against {x_name}. {'; '.join(ends)}.{f' {mark.text}.' if mark else ''}")


@dataclass(frozen=True)
class Scatter:
    """Points with error bars: a line a series, rings around those in `front`."""

    points: Sequence[Point]
    x_name: str
    y_name: str
    front: Collection[str] = ()

    def svg(self) -> str:
        """An SVG element."""
        with matplotlib.rc_context(_SETTINGS):
            return _svg(self._figure(), f"{self.y_name} against {self.x_name}")

    def png(self) -> bytes:
        """A PNG file on white."""
        buffer = io.BytesIO()
        with matplotlib.rc_context(_SETTINGS):
            FigureCanvasAgg(self._figure()).print_figure(buffer, format="png", dpi=150)
        return buffer.getvalue()

    def _figure(self) -> Figure:
        """A colour and a marker a series, a line style a sampler; the legend below the axes."""
        series = list(dict.fromkeys(point.series for point in self.points))
        solvers = list(dict.fromkeys(point.solver for point in self.points))
        series_styles: dict[str, dict[str, Any]] = {
            name: {"color": _COLOURS[n % len(_COLOURS)], "marker": _MARKERS[n % len(_MARKERS)], "ms": 5}
            for n, name in enumerate(series)
        }
        solver_styles: dict[str, dict[str, Any]] = {
            name: {"ls": _STYLES[n % len(_STYLES)], "mfc": None if n == 0 else "none"} for n, name in enumerate(solvers)
        }
        handles = [Line2D([], [], ls="", label=name, **series_styles[name]) for name in series]
        if len(solvers) > 1:
            black: dict[str, Any] = {"color": "#000000", "marker": "o"}
            handles += [Line2D([], [], label=name, **black, **solver_styles[name]) for name in solvers]
        columns = 2 if max(len(str(name.get_label())) for name in handles) <= _MAX_LABEL else 1
        figure = Figure(figsize=(5.6, 3.3 + 0.16 * -(-len(handles) // columns)), layout="constrained")
        axes = figure.add_subplot()
        for name in series:
            for solver in solvers:
                points = [point for point in self.points if (point.series, point.solver) == (name, solver)]
                x, y = [point.x for point in points], [point.y.value for point in points]
                style = series_styles[name] | solver_styles[solver]
                axes.errorbar(x, y, yerr=_error_bars(points), lw=1, elinewidth=0.7, **style)
        ringed = [point for point in self.points if point.label in self.front]
        axes.scatter([point.x for point in ringed], [point.y.value for point in ringed], **_RING)
        axes.set_xlabel(self.x_name)
        axes.set_ylabel(self.y_name)
        axes.grid(alpha=0.25)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
        return figure


def _svg(figure: Figure, name: str) -> str:
    """The bare element, with black as the colour of the page's text and a name for screen readers."""
    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("#000000", "currentColor").replace("<text ", '<text fill="currentColor" ')
    title = name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _error_bars(points: Sequence[Point]) -> list[list[float]] | None:
    """Lengths of the error bars below and above."""
    if any(point.y.interval is None for point in points):
        return None
    ends = [(point.y.value, *(point.y.interval or (0.0, 0.0))) for point in points]
    return [[max(0.0, value - low) for value, low, _ in ends], [max(0.0, high - value) for value, _, high in ends]]
