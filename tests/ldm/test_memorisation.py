"""Memorisation and calibration of a model: a copier is found out, an inventor is not, confidence is checked."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.metrics.calibration import calibration_figures
from ldm.runtime.errors import UserError
from ldm.sampling.config import SamplingConfig

CONFIG = EvaluationConfig(metrics=("memorisation",), num_images=60, batch_size=32, bootstrap=40)


@pytest.fixture(scope="module")
def train():
    return ShapesData("train", 32, size=(400, 150))


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(400, 150))


def drawing_from(source, fake_pipeline, noise):
    """A pipeline whose sample i is an image of `source`, hardly changed."""
    pipeline = fake_pipeline(source)

    def draw(index, seed, request, strength):
        clean = source[7 * index % len(source)].image
        return clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))

    pipeline._draw = draw
    return pipeline


def test_copies_of_training_images_are_found_and_shown(train, data, fake_pipeline, shapes_evaluators, tmp_path):
    evaluators = Evaluators(shapes_evaluators.extractor, None)
    copier, inventor = (drawing_from(source, fake_pipeline, 0.01) for source in (train, data))
    copied, invented = (
        evaluate_model(
            pipeline,
            data,
            SamplingConfig(),
            CONFIG,
            evaluators=evaluators,
            other_data=train,
            contact_sheet=contact_sheet,
        )
        for pipeline, contact_sheet in ((copier, tmp_path / "copies.png"), (inventor, None))
    )
    assert copied["memorisation"].value < 0.3 < 0.7 < invented["memorisation"].value < 1.4
    assert copied["memorisation"].interval[1] < invented["memorisation"].interval[0]
    assert copied["memorisation/near"].value > 0.9 and invented["memorisation/near"].value < 0.15
    facts = copied.manifest["memorisation"]
    assert facts["training_images"] == 400 and facts["held_out_images"] == 150
    first = facts["suspects"][0]
    with Image.open(tmp_path / "copies.png") as contact_sheet:  # 8 rows of a sample and 3 training images, enlarged
        factor = contact_sheet.height // (8 * 34 - 2)
        assert contact_sheet.size == ((4 * 34 - 2) * factor, (8 * 34 - 2) * factor)
        pixels = torch.tensor(list(contact_sheet.resize((4 * 34 - 2, 8 * 34 - 2), Image.Resampling.NEAREST).getdata()))
    sheet = pixels.view(8 * 34 - 2, 4 * 34 - 2, 3).permute(2, 0, 1).float() / 127.5 - 1
    nearest = train[first["training_images"][0]].image
    assert (sheet[:, :32, 34:66] - nearest).abs().max() < 0.01, "beside the sample lies its nearest training image"
    assert (sheet[:, :32, :32] - nearest).abs().mean() < 0.05, "and the sample is a copy of it"


def test_memorisation_needs_what_was_trained_on_and_what_was_not(train, data, fake_pipeline, shapes_evaluators):
    pipeline = fake_pipeline(data)
    for other in (None, data):
        with pytest.raises(UserError, match="`metrics` memorisation: shapes: needs the images that were trained on"):
            evaluate_model(pipeline, data, None, CONFIG, evaluators=shapes_evaluators, other_data=other)


def test_calibration_is_of_real_images_and_needs_no_samples(train, data, fake_pipeline, shapes_evaluators, monkeypatch):
    monkeypatch.setattr(fake_pipeline, "generate", lambda *_, **__: pytest.fail("sampled"))
    monkeypatch.setattr("ldm.evaluation.evaluators.trained_judge", lambda *_, **__: shapes_evaluators.judge)
    config = replace(CONFIG, metrics=("calibration",))
    found = evaluate_model(fake_pipeline(data), train, None, config, train_data=train, other_data=data)
    assert [figure.metric for figure in found.figures] == [f"calibration/{name}" for name in data.attribute_names]
    assert all(0 <= figure.value < 0.05 for figure in found.figures)
    assert found.manifest["split"] == "validation" and found.manifest["calibration"]["images"] == 150
    with pytest.raises(UserError, match="neither a judge for this data nor a classifier"):
        evaluate_model(fake_pipeline(data), data, None, replace(config, judge=False))


def test_a_classifier_that_boasts_has_the_error_of_its_boast(data):
    """It says class 0 with probability 0.9 whatever it sees: right as often as that class occurs."""

    class Boaster:
        def __call__(self, x, t):
            rest = torch.full((len(x), len(data.class_names)), 0.1 / (len(data.class_names) - 1))
            rest[:, 0] = 0.9
            return rest.log()

    level = SimpleNamespace(alpha=0.6, sigma=0.8, noise_ratio=4 / 3)
    schedule = SimpleNamespace(num_train_timesteps=1000, level=lambda t: level)
    guide = SimpleNamespace(network=Boaster(), schedule=schedule)
    pipeline = SimpleNamespace(
        networks=SimpleNamespace(classifiers={"classifier": guide}), encode=lambda images: images
    )
    figures, facts = calibration_figures(pipeline, None, data, replace(CONFIG, metrics=("calibration",)))
    share = sum(data.label(i) == 0 for i in range(len(data))) / len(data)
    assert [figure.name for figure in figures] == ["ECE[classifier at noise ratio 1.33]"]
    assert figures[0].value == pytest.approx(0.9 - share, abs=1e-6) and facts["images"] == len(data)
