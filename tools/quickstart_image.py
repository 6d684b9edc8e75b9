"""Draw the README's image: python -m tools.quickstart_image runs/quickstart docs/quickstart.png"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from ldm.runtime.files import read_json

_COLUMNS = 12
_GAP = 2  # pixels


def plot_samples(run: Path, target: Path) -> None:
    """The first samples of each row of the run's table, below the row's title and shares."""
    rows = read_json(run / "quickstart.json")["rows"]
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.05 * len(rows)), layout="constrained")
    for axis, row in zip(axes, rows, strict=True):
        folder = run / "pictures" / row["file"]
        images = [Image.open(folder / f"{number:06d}.png") for number in range(_COLUMNS)]
        side = images[0].width
        sample_row = Image.new("RGB", (_COLUMNS * (side + _GAP) - _GAP, side), "white")
        for number, image in enumerate(images):
            sample_row.paste(image, (number * (side + _GAP), 0))
        axis.imshow(sample_row, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(f"{row['title']}   {_shares_text(row)}", loc="left", fontsize=8, pad=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _shares_text(row: dict[str, float | None]) -> str:
    shares = [f"{name} right {row[name]:.0%}" for name in ("shape", "colour", "background") if row[name] is not None]
    return "(" + ", ".join([*shares, f"red {row['red']:.0%}"]) + ")"


if __name__ == "__main__":
    plot_samples(Path(sys.argv[1]), Path(sys.argv[2]))
