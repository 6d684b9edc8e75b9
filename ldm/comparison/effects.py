"""What a table of figures hides: runs that are the same as without guidance, and runs whose images look unreal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.comparison.records import Run
from ldm.evaluation.records import MetricValue
from ldm.runtime.files import open_regular

_FAR = 1.25  # a factor on the value of real images, either way


def with_differences(runs: Sequence[Run], sample_rows: Sequence[Path]) -> tuple[Run, ...]:
    """Each run with the mean difference of its first samples from those of "none" under the same sampler, in steps of
    8 bits; `sample_rows` are the images of the samples. None where "none" was not compared."""
    rows = list(zip(runs, sample_rows, strict=True))
    plain = {(run.sampler, run.steps): path for run, path in rows if run.method == "none"}
    pairs = [(path, plain.get((run.sampler, run.steps))) for run, path in rows]
    return tuple(
        run if base is None or base == path else replace(run, difference=_difference(path, base))
        for run, (path, base) in zip(runs, pairs, strict=True)
    )


def with_targets(runs: Sequence[Run], real: Sequence[MetricValue]) -> tuple[Run, ...]:
    """Each run with the values of real images as targets of the figures that are to be near them."""
    targets = {value.metric: value.value for value in real}

    def aimed(value: MetricValue) -> MetricValue:
        return value if value.directed else replace(value, target=targets.get(value.metric))

    results = [replace(run.result, figures=tuple(map(aimed, run.result.figures))) for run in runs]
    return tuple(replace(run, result=result) for run, result in zip(runs, results, strict=True))


def effect_notes(runs: Sequence[Run]) -> list[str]:
    """The runs that are as without guidance, and those that look unreal, a line of each kind."""
    same = [run.label for run in runs if run.as_none]
    notes = [f"as without guidance but for rounding, so it cannot win: {', '.join(same)}"] if same else []
    unreal = [f"{run.label} ({', '.join(far)})" for run in runs if (far := _far_from_real(run))]
    if unreal:
        listed = "; ".join(unreal[:6]) + (f"; and {len(unreal) - 6} more" if len(unreal) > 6 else "")
        notes.append(f"images that look unreal, by the values of real ones: {listed}")
    return notes


def _far_from_real(run: Run) -> list[str]:
    """`saturation x 1.6` for each figure far from that of real images, with all of its interval."""
    far = []
    for value in run.result.figures:
        if value.directed or not value.target:
            continue
        low, high = value.interval or (value.value, value.value)
        if low > _FAR * value.target or high < value.target / _FAR:
            far.append(f"{value.metric} x {value.value / value.target:.2g}")
    return far


def _difference(path: Path, other: Path) -> float:
    """The mean absolute difference of two images, of 255 steps."""
    a, b = (np.asarray(_opened(file), dtype=np.int16) for file in (path, other))
    return float(np.abs(a - b).mean())


def _opened(path: Path) -> Image.Image:
    with open_regular(path) as stream, Image.open(stream, formats=("PNG",)) as image:
        return image.convert("RGB")
