"""The best model of a run so far, by one of its measures, in the folder `best/` beside the last one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.files import atomic_folder, atomic_write_json, read_json

BEST, FACTS = "best", "best.json"


def keep_best(run: Path, best_by: str, measures: dict[str, Any], step: int, publish: Callable[[Path], None]) -> bool:
    """Publish into `run/best` if the measure whose name begins with `best_by` is below all before; whether it was.

    best.json there says by which measure, its value and the step. A run that was resumed from before its best step
    comes to the same model again and leaves the folder alone. No measure of that name, or NaN: nothing happens.
    """
    name = next((name for name in measures if name.startswith(best_by)), None)
    if name is None or not math.isfinite(measures[name]):
        return False
    file = run / BEST / FACTS
    before = read_json(file) if file.is_file() else {}
    if before.get("measure") == name and before["value"] <= measures[name]:
        return False
    with atomic_folder(run / BEST) as target:
        publish(target)
        atomic_write_json(target / FACTS, {"measure": name, "value": measures[name], "step": step})
    return True
