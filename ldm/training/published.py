"""Whether the model folders in a run are whole, and of the checkpoint that the run goes on from."""

from __future__ import annotations

import logging
from pathlib import Path

from ldm.runtime.errors import UserError
from ldm.sampling.model_manifest import differences, read_manifest
from ldm.sampling.publication import complete

logger = logging.getLogger("ldm")


def outdated(run: Path, step: int) -> str:
    """Why the model folder at the run's root must be published again at this step; "" where it need not be.

    All its files are read. A whole model of a later step, of a checkpoint that is gone, stays until the next one, which
    is logged.
    """
    complete(run)
    try:
        manifest = read_manifest(run)
    except UserError as error:
        return error.problem
    if manifest is None:
        return "it has no manifest"
    if problems := differences(run, manifest):
        return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    if manifest.step is None or manifest.step < step:
        return f"it was of step {manifest.step}"
    if manifest.step > step:
        text = "the published model is of step %d, later than the checkpoint of step %d that the run goes on from; %s"
        logger.warning(text, manifest.step, step, "the next checkpoint replaces it")
    return ""


def damage_of(folder: Path) -> str:
    """What is damaged in a model folder that has a manifest, such as best/; "" where nothing is."""
    complete(folder)
    try:
        manifest = read_manifest(folder)
        return "" if manifest is None else "; ".join(differences(folder, manifest)[:3])
    except UserError as error:
        return error.problem
