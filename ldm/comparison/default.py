"""The winner of a comparison as what its model samples with by default."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ldm.comparison.ranking import Ranking
from ldm.runtime.errors import UserError
from ldm.sampling.autoguidance import UNET as GUIDING_UNET
from ldm.sampling.config import ResolvedSampling, SamplingConfig
from ldm.sampling.defaults import FILE, write_defaults
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import SamplingPlan

_LEFT_OUT = ("spacing", "feature_cache", "energy", "compile")  # settings that are no part of a default


def check_default(pipeline: Pipeline, sampling: ResolvedSampling) -> None:
    """`UserError`, before any work, where no winner could be saved."""
    if pipeline.folder is None:
        raise UserError("this pipeline has no model folder", remedy="load it from one", setting="save_default")
    if not os.access(pipeline.folder, os.W_OK):
        raise UserError(f"{pipeline.folder} cannot be written to", setting="save_default")
    plain = SamplingConfig()
    for name in _LEFT_OUT:
        if getattr(sampling, name) != getattr(plain, name):
            problem = f"`{name}` is no part of a model's default"
            raise UserError(problem, remedy="leave out one of them", setting="save_default")


def save_default(pipeline: Pipeline, ranking: Ranking, plans: Mapping[str, SamplingPlan]) -> str:
    """Write the winner's settings into the model folder; one line on what is its default now, or why nothing changed.

    `plans` are those of the runs by label. The winner must need nothing but the model folder itself, whatever the
    prompts.
    """
    assert pipeline.folder is not None
    if ranking.best is None:
        return f"no default was saved: {ranking.sentence}"
    plan = plans[ranking.best.label]
    missing = _beyond_the_folder(pipeline, plan)
    if ranking.best.method == "unconditional":
        missing = "it leaves the conditions out"
    if missing:
        return f"no default was saved: the winner is {ranking.best.label}, but {missing}"
    value = ranking.best.result[ranking.metric]
    count = ranking.best.result.manifest["num_images"]
    reason = f"{ranking.best.label}, {value.name} {value.value:.4g} of {count} samples"
    write_defaults(pipeline.folder, plan.config, reason)
    return f"saved as the model's default ({pipeline.folder / FILE}): {reason}"


def _beyond_the_folder(pipeline: Pipeline, plan: SamplingPlan) -> str:
    """What the plan needs besides the model folder and any condition, in words; "" for nothing."""
    assert pipeline.folder is not None
    networks, root = pipeline.networks, pipeline.folder.resolve()
    if "weak" in plan.needed and not (root / GUIDING_UNET).is_dir():
        return "its guiding model lies outside of the model folder"
    for name in sorted(plan.needed & networks.classifiers.keys()):
        if not networks.classifiers[name].folder.resolve().is_relative_to(root):
            return f"its classifier {name!r} lies outside of the model folder"
        if not networks.has_classes:
            return "a classifier needs a class, which a prompt does not give"
    return ""
