"""The best model of a run so far, by one of its measures, in the folder `best/` beside the last one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ldm.runtime.files import atomic_folder, atomic_write_json, read_json

BEST, FACTS = "best", "best.json"


def keep_best(
    run: Path,
    best_by: str,
    measures: Mapping[str, Any],
    step: int,
    publish: Callable[[Path], None],
    *,
    higher_is_better: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> bool:
    """Publish into `run/best` if the measure whose name begins with `best_by` is better than all before; whether so.

    best.json there says by which measure, its value and the step, and the `facts` (plain JSON) without which values do
    not compare: where they changed, the present model is the best. A run that was resumed from before its best step
    comes to the same model again and leaves the folder alone. No measure of that name, or NaN: nothing happens.
    """
    name = next((name for name in measures if name.startswith(best_by)), None)
    if name is None or measures[name] is None or not math.isfinite(measures[name]):
        return False
    file, value = run / BEST / FACTS, measures[name]
    before = read_json(file) if file.is_file() else {}
    if before.get("measure") == name and before.get("facts") == facts:
        better = value > before["value"] if higher_is_better else value < before["value"]
        if not better:
            return False
    with atomic_folder(run / BEST) as target:
        publish(target)
        told = {"measure": name, "value": value, "step": step}
        told |= {"higher_is_better": True} if higher_is_better else {}
        atomic_write_json(target / FACTS, told if facts is None else {**told, "facts": facts})
    return True
