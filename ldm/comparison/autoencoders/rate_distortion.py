"""The rate-distortion plot of all autoencoders: bits per pixel of the latents against PSNR."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.comparison.autoencoders.records import AutoencoderRecord
from ldm.runtime.files import atomic_write

# Okabe and Ito 2008: distinct to colour-blind eyes, with the markers also in grey
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
_DASHES = ((6, 3), (2, 2), (8, 2, 2, 2), (1, 1.5))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def plot_rate_distortion(runs: Sequence[AutoencoderRecord], folder: Path, name: str = "rate-distortion") -> list[Path]:
    """PNG and SVG: a point a run with a rate, a dashed line for a run without; none where no run has a PSNR."""
    runs = [run for run in runs if run.value("psnr") is not None]
    if not runs:
        return []
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with rc_context({"svg.hashsalt": "ldm", "font.size": 11, "text.parse_math": False}):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        axes = figure.add_subplot()
        points: list[tuple[float, float, str]] = []
        for number, run in enumerate(runs):
            colour: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)]}
            psnr, bits_per_pixel = run.value("psnr"), run.value("rate")
            assert psnr is not None
            label = f"{run.name} ({run.numbers} numbers)"
            if bits_per_pixel is None or not bits_per_pixel.value > 0:
                dashes = (0, _DASHES[number % len(_DASHES)])
                axes.axhline(psnr.value, linestyle=dashes, linewidth=1.5, label=f"{label}, no rate", **colour)
                continue
            marker = _MARKERS[number % len(_MARKERS)]
            errors: dict[str, Any] = {"yerr": psnr.standard_error, "xerr": bits_per_pixel.standard_error, "capsize": 3}
            axes.errorbar(bits_per_pixel.value, psnr.value, fmt=marker, markersize=8, label=label, **errors, **colour)
            points.append((bits_per_pixel.value, psnr.value, run.name))
        for number, (x, y, run_name) in enumerate(sorted(points, key=lambda point: point[0])):
            offset = (7, 6) if number % 2 else (7, -14)  # names of neighbours do not overlap
            axes.annotate(run_name, (x, y), offset, textcoords="offset points")
        if points:
            axes.set_xscale("log")
            for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                axis_format(FuncFormatter(_tick_label))
        axes.margins(x=0.2, y=0.12)
        axes.set_xlabel("rate: bits a pixel (entropy of codes, or KL)")
        axes.set_ylabel("PSNR of held-out images, dB")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
        paths = []
        for kind, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
            buffer = io.BytesIO()
            options = {"dpi": 150} if kind == "png" else {"metadata": {"Date": None}}
            canvas(figure).print_figure(buffer, format=kind, **options)  # type: ignore[arg-type]
            paths.append(folder / f"{name}.{kind}")
            atomic_write(paths[-1], buffer.getvalue())
    return paths


def _tick_label(value: float, position: int) -> str:
    """0.1, 0.2, 0.5, 1, 2, ... on a logarithmic axis; others are too close to each other."""
    digits = f"{value:.1e}"
    return f"{value:g}" if digits[:3] in ("1.0", "2.0", "5.0") else ""
