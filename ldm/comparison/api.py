"""`from ldm import compare`: a comparison of guidances in one call, from Python."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.comparison.compare import compare, model_identity
from ldm.comparison.config import METRICS_OF_COMPARISONS, ComparisonConfig
from ldm.comparison.records import Comparison
from ldm.data import DataConfig, open_data
from ldm.data.dataset import ImageData
from ldm.evaluation import EvaluationConfig
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.text import suggest
from ldm.sampling.config import SamplingConfig
from ldm.sampling.model_folder import Classifiers
from ldm.sampling.pipeline import Pipeline
from ldm.training.tasks.published import dataset_of
from samplers import Guidance, guidances, parse_guidance

Method = str | Guidance | Sequence[str | Guidance]


def compare_guidances(
    model: str | Path | Pipeline,
    guidances: Sequence[Method] = (),
    *,
    data: str | DataConfig | ImageData | None = None,
    split: str = "validation",
    output_dir: str | Path | None = None,
    classifier: Classifiers | None = None,
    weak: str | Path | None = None,
    device: str = "auto",
    **settings: Any,
) -> Comparison:
    """What `ldm compare` finds, as a table of frozen records: `print` it, iterate over it, or take `.to_pandas()`.

    `model` is a folder or a loaded `Pipeline`; `guidances` are methods by name ("none", "cfg"), guidances as text
    ("pag(3)") or as objects (`ClassifierFree(7.5)`), or sequences of these that act together; none given: as the
    command. `data` is a data set or its name or folder; of a run folder it defaults to that of its training. `settings`
    are fields of `ComparisonConfig`, `SamplingConfig` and `EvaluationConfig` by name: `num_images=500,
    guidance_scales=(2, 4)`. The files of the command are written to `output_dir`, if it is given, and the same call
    goes on where it was stopped. Raises `UserError` as `ldm.comparison.compare`, before any work.

        table = compare("runs/diffusion", ["none", "cfg", "pag(2)"], num_images=500)
    """
    kinds = (ComparisonConfig, SamplingConfig, EvaluationConfig)
    settings = {
        "metrics": METRICS_OF_COMPARISONS,
        **settings,
        "methods": tuple(method_text(each) for each in guidances),
    }
    comparison, sampling, evaluation = (_taken(kind, settings) for kind in kinds)
    if unknown := sorted(settings.keys() - {field.name for kind in kinds for field in dataclasses.fields(kind)}):
        known = [field.name for kind in kinds for field in dataclasses.fields(kind)]
        raise UserError(f"compare: unknown setting {unknown[0]!r}", remedy=suggest(unknown[0], known))
    if isinstance(model, Pipeline):
        if classifier is not None or weak is not None:
            raise UserError("compare: a loaded pipeline has its classifier and weak network", remedy="leave them out")
        pipeline, identity, name = model, "", "this model"
    else:
        pipeline = Pipeline.load(model, device=resolve_device(device), classifier=classifier, weak=weak)
        apart = [guide.folder.parent for guide in pipeline.networks.classifiers.values()] + ([weak] if weak else [])
        identity, name = model_identity(model, *apart), Path(model).resolve().name
    reference, train = _data(model, data, split, pipeline.image_size)
    if reference.image_size != pipeline.image_size:
        raise UserError(
            f"compare: images of {reference.image_size} pixels", remedy=f"this model makes {pipeline.image_size}"
        )
    given = {"sampling": sampling, "evaluation": evaluation, "train_data": train, "model": identity, "name": name}
    if output_dir is not None:
        return compare(pipeline, reference, comparison, output_dir=output_dir, **given)
    with tempfile.TemporaryDirectory() as folder:
        return compare(pipeline, reference, comparison, output_dir=folder, **given)


def method_text(method: Method) -> str:
    """A method as `--methods` has it: of a guidance object its name and options, of several with " + " between."""
    if isinstance(method, str):
        return method
    if isinstance(method, Sequence):
        return " + ".join(method_text(each) for each in method)
    name = next((info.name for info in guidances().values() if info.function is type(method)), "")
    if not name or not dataclasses.is_dataclass(method):
        raise UserError(
            f"compare: {type(method).__name__} is not a registered guidance", remedy="give its text, say 'cfg(3)'"
        )
    fields = [field for field in dataclasses.fields(method) if field.init]
    options = [_option(method, field) for field in fields if getattr(method, field.name) != field.default]
    text = f"{name}({', '.join(options)})"
    if parse_guidance(text) != method:
        raise UserError(f"compare: the options of {type(method).__name__} cannot be told as text")
    return text


def _option(method: Any, field: dataclasses.Field[Any]) -> str:
    value = repr(getattr(method, field.name))
    return value if field.default is dataclasses.MISSING else f"{field.name}={value}"


def _taken(kind: Any, settings: dict[str, Any]) -> Any:
    """A dataclass of those settings that are its fields; lists are tuples there."""
    names = [field.name for field in dataclasses.fields(kind)]
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return kind(**{name: value for name, value in plain.items() if name in names})


def _data(
    model: str | Path | Pipeline, data: str | DataConfig | ImageData | None, split: str, size: int
) -> tuple[ImageData, ImageData]:
    """The reference, and the images that instruments are trained on."""
    config = data
    if data is None:
        config = None if isinstance(model, Pipeline) else dataset_of(model)
        if config is None:
            raise UserError("compare: data is missing: give the data set that the model was trained on")
    if isinstance(config, str):
        config = DataConfig(data=config, image_size=size)
    if isinstance(config, DataConfig):
        return open_data(config, split), open_data(config, "train")
    assert config is not None
    return config, config
