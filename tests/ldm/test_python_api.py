"""From Python: values are taken as they are meant or refused by name, and what is returned prints shortly."""

import dataclasses
import importlib
import inspect
import warnings
from dataclasses import dataclass

import pytest
import torch

from autoencoders import Bottleneck, BottleneckConfig, bottleneck
from autoencoders.bottlenecks.base import BottleneckOutput, Encoding
from autoencoders.bottlenecks.registry import _bottlenecks
from ldm import Request, SamplingConfig
from ldm.comparison.config import ComparisonConfig
from ldm.comparison.records import Comparison, Run
from ldm.conditioning.condition import Condition
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.periodic_config import EvalConfig
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.evaluation.registry import metrics
from ldm.evaluation.sample_stats import SampleStats
from ldm.models.backbone import Backbone, _backbones, backbone
from ldm.runtime.errors import UserError
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import parse_guidances
from samplers import ClassifierFree, Guidance, Level, Prediction, Step, guidance, sampler
from samplers.registry import _guidances, _samplers


@pytest.mark.parametrize(
    ("made", "field", "value"),
    [
        (lambda: SamplingConfig(guidance=[ClassifierFree(3.0)]), "guidance", ("cfg(3.0)",)),
        (lambda: SamplingConfig(guidance=ClassifierFree(3.0)), "guidance", ("cfg(3.0)",)),
        (lambda: SamplingConfig(guidance="cfg(3)"), "guidance", ("cfg(3)",)),
        (lambda: SamplingConfig(energy="colour([1, 0, 0])"), "energy", ("colour([1, 0, 0])",)),
        (lambda: EvaluationConfig(metrics="fid"), "metrics", ("fid",)),
        (lambda: EvaluationConfig(metrics=["fid", "kid"]), "metrics", ("fid", "kid")),
        (lambda: EvalConfig(eval_metrics="recall"), "eval_metrics", ("recall",)),
        (lambda: ComparisonConfig(methods="cfg", guidance_scales=3), "guidance_scales", (3,)),
    ],
)
def test_one_value_where_several_are_meant_is_taken(made, field, value):
    assert getattr(made(), field) == value


def test_a_guidance_object_is_the_guidance():
    given = ClassifierFree(3.0, interval=(0.3, 5.0))
    assert parse_guidances(SamplingConfig(guidance=[given])) == (given,)


class Unregistered(Guidance):
    pass


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: SamplingConfig(guidance=3), "`guidance`: expected .*str.*, got 3"),
        (lambda: SamplingConfig(guidance=[Unregistered()]), "`guidance`: Unregistered is not a registered guidance"),
        (lambda: SamplingConfig(guidance_scale="3"), "`guidance_scale`: expected float .*, got '3'"),
        (lambda: SamplingConfig(num_inference_steps=2.5), "`num_inference_steps`: expected int .*, got 2.5"),
        (lambda: EvaluationConfig(num_images="many"), "`num_images`: expected int, got 'many'"),
        (lambda: ComparisonConfig(guidance_scales=["a"]), "`guidance_scales`: expected .*float"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(made, words):
    with pytest.raises(UserError, match=words):
        made()


@pytest.mark.parametrize("requests", ["a red circle", Request("a red circle"), ["a red circle"], 4, [None]])
def test_generate_says_what_to_give(requests, models):
    pipeline = Pipeline.load(models.text)
    with pytest.raises(UserError, match=r"`requests`: expected a list of requests, got .*; give .*\[Request\("):
        pipeline.generate(requests)


def test_a_missing_name_is_a_user_error_and_a_key_error():
    result = EvaluationResult((MetricValue("fid", "FID", 1.0),), {})
    for missing in (lambda: result["kid"], lambda: Comparison((), {}, {})["cfg 3"]):
        with pytest.raises(UserError):
            missing()
        with pytest.raises(KeyError, match=r"^[^'\"]"):
            missing()


def registered_twice(kind):
    """What the cell of a notebook does that is run twice."""

    def cell(value):
        if kind == "sampler":

            @sampler("of_a_cell", order=1, source="-")
            def of_a_cell(denoise, x, levels, *, noise=None, strength: float = value):
                yield

            return lambda: _samplers.pop("of_a_cell").options["strength"]
        if kind == "guidance":

            @guidance("of_a_cell", source="-")
            @dataclass(frozen=True)
            class OfACell(Guidance):
                strength: float = value

            return lambda: _guidances.pop("of_a_cell").options["strength"]
        if kind == "bottleneck":

            @bottleneck("of_a_cell", source="-")
            @dataclass(frozen=True)
            class OfACellConfig(BottleneckConfig):
                strength: float = value

                def build(self, config):
                    return Bottleneck()

            return lambda: _bottlenecks.pop("of_a_cell")().strength
        if kind == "metric":

            @metrics.register("of_a_cell", help="-", needs=("features",))
            class OfACellMetric:
                strength = value

            return lambda: (metrics._infos.pop("of_a_cell"), metrics._classes.pop("of_a_cell"))[1].strength

        @backbone("OfACell")
        class OfACellNetwork(Backbone):
            strength = value

        return lambda: _backbones.pop("OfACell").strength

    cell(1.0)
    with pytest.warns(UserWarning, match="is registered anew and replaces the one before"):
        newest = cell(2.0)
    return newest()


@pytest.mark.parametrize("kind", ["sampler", "guidance", "bottleneck", "metric", "network"])
def test_registering_anew_replaces_with_a_note(kind):
    assert registered_twice(kind) == 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="registered twice"):
            if kind in ("sampler", "guidance"):
                decorate = sampler("ddim", order=1, source="-") if kind == "sampler" else guidance("cfg", source="-")
                decorate(lambda *, noise=None: None)
            elif kind == "bottleneck":
                bottleneck("kl", source="-")(type("Other", (BottleneckConfig,), {}))
            elif kind == "metric":
                metrics.register("fid")(type("Other", (), {}))
            else:
                backbone("UNet2DConditionModel")(type("Other", (Backbone,), {}))


LARGE, LEVEL = torch.zeros(64, 512), Level(10.0, 0.9, 0.4)
VALUE = MetricValue("fid", "FID", 1.0, halves=(0.5,) * 1000)
RESULT = EvaluationResult((VALUE,) * 9, {"data": "x" * 1000})
RUN = Run("cfg 3", "cfg", 3.0, None, "ddim", 50, None, RESULT)
RECORDS = [
    Prediction(LARGE, LEVEL, LARGE), Step(LARGE, LEVEL, LARGE, 3), Encoding(LARGE, LARGE), BottleneckOutput(LARGE),
    Condition(LARGE, LARGE), SampleStats(64, LARGE, images=LARGE), VALUE, RESULT, RUN,
    Comparison((RUN,) * 40, {}, {"data": "x" * 1000}),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_prints_shortly(record):
    text = repr(record)
    assert text.startswith(f"{type(record).__name__}(") and len(text) < 400 and "\n" not in text
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value is LARGE:
            assert f"{field.name}=float32 (64, 512)" in text


@pytest.mark.parametrize(
    "name",
    [
        "ldm.sampling.pipeline:Pipeline.load", "ldm.sampling.pipeline:Pipeline", "ldm.sampling.loading:load_model",
        "ldm.sampling.code_prior:CodePriorModel.load", "ldm.evaluation.folders:evaluate_folders",
        "ldm.evaluation.evaluators:prepare_evaluators", "ldm.evaluation.features.extractors:trained_extractor",
        "ldm.evaluation.autoencoder.evaluate:evaluate_autoencoder", "ldm.data.latent_cache:encode_latents",
        "ldm.comparison.api:compare_guidances", "ldm.comparison.autoencoders.compare:compare_autoencoders",
    ],
)  # fmt: skip
def test_the_device_is_auto_unless_it_is_given(name):
    module, _, path = name.partition(":")
    function = importlib.import_module(module)
    for part in path.split("."):
        function = getattr(function, part)
    assert inspect.signature(function).parameters["device"].default == "auto"
