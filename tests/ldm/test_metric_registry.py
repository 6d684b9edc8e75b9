"""Metrics by name: built-in ones, and those of another package, which an evaluation measures like its own."""

import sys

import pytest

from ldm.cli.evaluate import EvaluateRun
from ldm.cli.evaluate_autoencoder import EvaluateAutoencoderRun
from ldm.cli.parsing import parse
from ldm.data.shapes import ShapesData
from ldm.evaluation.autoencoder.base import AutoencoderMetric
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.metrics.base import Metric, MetricResult, ModelMetric, SampleMetric
from ldm.evaluation.periodic_config import EvalConfig
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import autoencoder_metrics, metrics
from ldm.runtime.errors import UserError

MINE = """
from ldm.evaluation.metrics.base import SampleMetric
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics

@metrics.register("mean_gap", help="distance of the mean features", needs=("features",))
class MeanGap(SampleMetric):
    def measure(self, samples, config):
        return self.value(samples, float((samples.reference.mean - samples.fake.double().mean(0)).norm()))
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is gone after it; built-in classes, which register at import, stay."""
    for name in metrics._built_in:
        metrics.get(name)
    monkeypatch.setattr(metrics, "_infos", dict(metrics._infos))
    monkeypatch.setattr(metrics, "_classes", dict(metrics._classes))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """What pip leaves behind of a package with one metric."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def write(text, name="mean_gap"):
        info = tmp_path / "site" / "plugmetric-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugmetric\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ldm.metrics]\n{name} = plugmetric:MeanGap\n")
        (tmp_path / "site" / "plugmetric.py").write_text(text)

    yield write
    sys.modules.pop("plugmetric", None)


@pytest.mark.parametrize("registry", [metrics, autoencoder_metrics], ids=["model", "autoencoder"])
def test_every_built_in_metric_is_described_and_made(registry):
    for info in registry.all():
        metric = registry.get(info.name)
        assert isinstance(metric, Metric | AutoencoderMetric) and metric.name == info.name and info.help and info.needs
        if isinstance(metric, Metric):
            assert isinstance(metric, SampleMetric if info.of_samples else ModelMetric)


def test_metrics_of_features_of_class_probabilities_and_of_the_model(shapes, shapes_evaluators, fake_pipeline):
    @metrics.register("spread", needs=("features",))
    class Spread(SampleMetric):
        def measure(self, samples, config):
            halves = [float(samples.fake[half].std()) for half in samples.halves(config)]
            return self.value(samples, float(samples.fake.std()), halves)

    @metrics.register("confidence", needs=("class_probs",))
    class Confidence(SampleMetric):
        def measure(self, samples, config):
            return MetricValue(self.name, f"confidence[{samples.judge}]", float(samples.class_probs.amax(1).mean()))

    @metrics.register("train_size", needs=("training_split",))
    class TrainSize(ModelMetric):
        def measure(self, evaluation):
            train, _ = self.training_and_held_out(evaluation.context)
            return MetricResult((MetricValue(self.name, self.name, len(train)),), {"train_size": "counted"})

    data = ShapesData("validation", 32, size=(8, 60))
    config = EvaluationConfig(metrics=("confidence", "fid", "train_size", "spread"), num_images=24, bootstrap=8)
    result = evaluate_model(
        fake_pipeline(data), data, None, config, evaluators=shapes_evaluators, train_data=shapes, other_data=shapes
    )
    names = [figure.metric for figure in result.figures if not figure.metric.startswith("accuracy")]
    assert names == ["confidence", "fid", "spread", "train_size"]
    assert result["spread"].interval is not None and 0.5 < result["confidence"].value <= 1
    assert result["spread"].name == f"spread[{shapes_evaluators.extractor.name}]"
    assert [figure.metric for figure in result.baseline] == ["confidence", "fid", "spread"]
    assert result["train_size"].value == len(shapes) and result.manifest["train_size"] == "counted"
    with pytest.raises(UserError, match="`metrics` train_size: shapes: needs the images that were trained on"):
        evaluate_model(fake_pipeline(data), data, None, config, evaluators=shapes_evaluators)
    assert EvalConfig(eval_metrics=("spread",)).evaluation().metrics == ("spread",)
    for name in ("train_size", "clip_score", "nothing"):
        with pytest.raises(UserError, match=f"`eval_metrics`: unknown metric '{name}'"):
            EvalConfig(eval_metrics=(name,))
    with pytest.raises(ValueError, match="'fid' is registered twice"):
        metrics.register("fid")(Spread)


@pytest.mark.usefixtures("quick_networks")
def test_a_metric_of_another_package_is_listed_and_measured(install, ldm, models):
    install(MINE)
    assert "mean_gap" in metrics.names() and "plugmetric" not in sys.modules, "no import for a name"
    assert "distance of the mean features" in ldm("list", "metrics").out
    flags = ["--metrics", "mean_gap", "--num-images", 8, "--num-inference-steps", 2, "--extractor", "trained"]
    found = ldm("evaluate", models.classes, *flags, "--no-judge", "--device", "cpu")
    assert found.code == 0, found.err
    assert "\nmean_gap[trained-cnn:" in found.out


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("import a_package_that_is_not_there", "mean_gap", ["cannot be used", "ModuleNotFoundError"]),
        ("MeanGap = 1", "mean_gap", ["registers no metric 'mean_gap'"]),
        (MINE, "fid", ["'fid' is registered twice"]),
    ],
    ids=["missing", "nothing", "duplicate"],
)
def test_a_package_that_fails_is_named_in_one_line(install, refused, models, text, name, words):
    install(text, name)
    refused(["list", "metrics"], "plugmetric", *words)
    if name == "mean_gap":
        refused(["evaluate", models.classes, "--metrics", "mean_gap", "--device", "cpu"], "plugmetric", *words)


def test_the_help_names_every_metric(capsys):
    for schema, registry in ((EvaluateRun, metrics), (EvaluateAutoencoderRun, autoencoder_metrics)):
        with pytest.raises(SystemExit):
            parse(schema, ["--help"], "evaluate")
        text = capsys.readouterr().out
        assert all(name in text for name in registry.names())
