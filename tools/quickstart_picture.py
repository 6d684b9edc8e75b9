"""Draw the README's picture: python -m tools.quickstart_picture runs/quickstart docs/quickstart.png"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from ldm.runtime.files import read_json

_COLUMNS = 12


def draw(run: Path, target: Path) -> None:
    """A line of pictures for each row of the run's table, under the row's title and what a judge saw."""
    rows = read_json(run / "quickstart.json")["rows"]
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.05 * len(rows)), layout="constrained")
    for axis, row in zip(axes, rows, strict=True):
        folder = run / "pictures" / row["file"]
        pictures = [Image.open(folder / f"{number:06d}.png") for number in range(_COLUMNS)]
        side, gap = pictures[0].width, 2
        strip = Image.new("RGB", (_COLUMNS * (side + gap) - gap, side), "white")
        for number, picture in enumerate(pictures):
            strip.paste(picture, (number * (side + gap), 0))
        axis.imshow(strip, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(f"{row['title']}   {_seen(row)}", loc="left", fontsize=8, pad=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _seen(row: dict[str, float | None]) -> str:
    shares = [(name, row[name]) for name in ("shape", "colour", "background")]
    told = [f"{name} right {share:.0%}" for name, share in shares if share is not None]
    return "(" + ", ".join([*told, f"red {row['red']:.0%}"]) + ")"


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
