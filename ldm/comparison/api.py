"""`from ldm import compare`: a comparison of guidances in one call from Python."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.comparison.compare import compare
from ldm.comparison.config import METRICS_OF_COMPARISONS, ComparisonConfig
from ldm.comparison.records import Comparison
from ldm.data.config import DataConfig
from ldm.data.dataset import ImageData
from ldm.data.open import open_data
from ldm.evaluation.config import EvaluationConfig
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.text import suggest
from ldm.sampling.config import SamplingConfig
from ldm.sampling.identity import identity_of
from ldm.sampling.model_folder import Classifiers
from ldm.sampling.pipeline import Pipeline
from ldm.training.tasks.published import dataset_of
from samplers import Guidance, guidance_text

Method = str | Guidance | Sequence[str | Guidance]


def compare_guidances(
    model: str | Path | Pipeline,
    guidances: str | Guidance | Sequence[Method] = (),
    *,
    data: str | DataConfig | ImageData | None = None,
    split: str = "validation",
    output_dir: str | Path | None = None,
    classifier: Classifiers | None = None,
    weak: str | Path | None = None,
    device: torch.device | str = "auto",
    **settings: Any,
) -> Comparison:
    """`ldm compare` from Python; the result is a table of frozen records: `print` it, iterate, or take `.to_pandas()`.

    `model` is a folder or a loaded `Pipeline`; `guidances` are methods by name ("none", "cfg"), guidances as text
    ("pag(3)") or as objects (`ClassifierFree(7.5)`), or sequences of these that act together; the default is that of
    the command. `data` is a data set or its name or folder; of a run folder it defaults to that of its training.
    `settings` are fields of `ComparisonConfig`, `SamplingConfig` and `EvaluationConfig` by name: `num_images=500,
    guidance_scales=(2, 4)`. The files of the command are written to `output_dir`, if it is given, and the same call
    continues where it stopped. Raises `UserError` as `ldm.comparison.compare`, before any work.

        table = compare("runs/diffusion", ["none", "cfg", "pag(2)"], num_images=500)
    """
    kinds = (ComparisonConfig, SamplingConfig, EvaluationConfig)
    known = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    if unknown := sorted(settings.keys() - set(known)):
        raise UserError(f"compare: unknown setting {unknown[0]!r}", remedy=suggest(unknown[0], known))
    listed = [guidances] if isinstance(guidances, str | Guidance) else guidances
    methods = tuple(method_text(method) for method in listed)
    settings = {"metrics": METRICS_OF_COMPARISONS, **settings, "methods": methods}
    config, sampling, evaluation = (_config(kind, settings) for kind in kinds)
    if isinstance(model, Pipeline):
        if classifier is not None or weak is not None:
            raise UserError("compare: a loaded pipeline has its classifier and weak network", remedy="leave them out")
        pipeline, identity, name = model, "", "this model"
    else:
        pipeline = Pipeline.load(model, device=device, classifier=classifier, weak=weak)
        identity, name = identity_of(pipeline, model, weak), Path(model).resolve().name
    reference, train = _data(model, data, split, pipeline.image_size)
    if reference.image_size != pipeline.image_size:
        remedy = f"this model makes {pipeline.image_size}"
        raise UserError(f"compare: images of {reference.image_size} pixels", remedy=remedy)
    options = {"sampling": sampling, "evaluation": evaluation, "train_data": train, "model": identity, "name": name}
    if output_dir is not None:
        return compare(pipeline, reference, config, output_dir=output_dir, **options)
    with tempfile.TemporaryDirectory() as folder:
        return compare(pipeline, reference, config, output_dir=folder, **options)


def method_text(method: Method) -> str:
    """A method in the syntax of `ComparisonConfig.methods`: a guidance object by its name and options, several with
    " + " between."""
    if isinstance(method, str):
        return method
    if isinstance(method, Sequence):
        return " + ".join(map(method_text, method))
    with user_errors():
        return guidance_text(method)


def _config(kind: Any, settings: dict[str, Any]) -> Any:
    """The dataclass `kind` of those settings that are its fields; lists become tuples."""
    names = {field.name for field in dataclasses.fields(kind)} & settings.keys()
    values = {name: settings[name] for name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _data(
    model: str | Path | Pipeline, data: str | DataConfig | ImageData | None, split: str, size: int
) -> tuple[ImageData, ImageData]:
    """The reference, and the images that evaluators are trained on."""
    if data is None:
        data = None if isinstance(model, Pipeline) else dataset_of(model)
        if data is None:
            raise UserError("compare: data is missing: give the data set that the model was trained on")
    if isinstance(data, str):
        data = DataConfig(data=data, image_size=size)
    if isinstance(data, DataConfig):
        return open_data(data, split), open_data(data, "train")
    return data, data
