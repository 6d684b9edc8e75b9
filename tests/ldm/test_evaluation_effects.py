"""What goes wrong with samples, and which way each metric moves then: the table that the figures are trusted by."""

import pytest
import torch
import torch.nn.functional as F

from ldm.data.shapes import ShapesData
from ldm.evaluation.baseline import baseline_of_data, baseline_of_features
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.metrics.base import Samples, measure_samples

COUNT = 480
METRICS = (
    "fid", "kid", "sliced_fid", "precision", "recall", "density", "coverage", "inception_score", "diversity",
)  # fmt: skip
CONFIG = EvaluationConfig(metrics=METRICS, bootstrap=0)
OF_FEATURES = EvaluationConfig(metrics=("fid", "precision", "coverage"), bootstrap=0)

# Columns: fid, kid, sliced_fid, precision, recall, density, coverage, inception_score, diversity.
# "+": clearly larger than of fresh real images, "-": clearly smaller, "=": not worse, ".": nothing is promised.
TABLE = {
    "noise": "+ + + - . - - . .",
    "blur": "+ + + - . - - . .",
    "dropped classes": "+ + + = - = - - .",
    "one class, twice the others": "+ + + = . = . - .",
    "duplicates": "+ . + . - . - . -",
    "one colour": "+ + + = - . - . -",
}


def blurred(images):
    kernel = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    x = F.pad(images, (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def taken(data, start, which=lambda told: True, count=COUNT):
    """The first images from `start` on whose attributes fit, and their shapes."""
    numbers = [i for i in range(start, len(data)) if which(data.attributes(i))][:count]
    assert len(numbers) == count
    return torch.stack([data[i].image for i in numbers]), [data.label(i) for i in numbers]


def damaged(data):
    images, labels = taken(data, COUNT)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    some = sorted(data.class_names)[:2]
    first, second = (taken(data, COUNT, lambda told: told["shape"] == some[0], 160) for _ in range(2))
    few, whose = taken(data, COUNT, count=COUNT // 8)
    return {
        "noise": (images + 0.25 * noise, labels),
        "blur": (blurred(images), labels),
        "dropped classes": taken(data, COUNT, lambda told: told["shape"] in some),
        "one class, twice the others": (torch.cat([images[:320], first[0]]), labels[:320] + second[1]),
        "duplicates": (few.repeat(8, 1, 1, 1), whose * 8),
        "one colour": taken(data, COUNT, lambda told: told["colour"] == "red"),
    }


def test_the_metrics_move_the_way_that_they_should(shapes, shapes_evaluators):
    extractor, judge = shapes_evaluators.extractor, shapes_evaluators.judge
    real = extractor(taken(shapes, 0)[0])

    def measured(images, labels):
        class_probs = judge.probabilities(images)[judge.class_head]
        return [
            figure.value
            for figure in measure_samples(
                Samples(real, extractor(images), extractor, labels, class_probs, "judge"), CONFIG
            )
        ]

    fresh = measured(*taken(shapes, COUNT))
    wrong = []
    for name, samples in damaged(shapes).items():
        found = measured(*samples)
        for metric, sign, base, value in zip(METRICS, TABLE[name].split(), fresh, found, strict=True):
            margin = {"kid": 0.03, "coverage": 0.04, "diversity": 0.05 * base}.get(metric, 0.1 * base)
            right = {"+": value > base + margin, "-": value < base - margin, "=": value > base - margin, ".": True}
            if not right[sign]:
                wrong.append(f"{name}: {metric} {value:.4g} of {base:.4g}, expected {sign}")
    assert not wrong, "\n".join(wrong)


def test_the_floor_is_what_real_images_have(shapes, shapes_evaluators):
    """Images of the law of the data lie at the floor, damaged ones beyond it; it is of as many images."""
    data, config = ShapesData("validation", 32, size=(1, 600)), EvaluationConfig(num_images=300, metrics=METRICS)
    extractor = shapes_evaluators.extractor
    real = extractor(torch.stack([data[i].image for i in range(600)]))
    floor = baseline_of_data(shapes, data, real, config, shapes_evaluators)
    assert [figure.metric for figure in floor.figures] == list(METRICS)
    assert floor.provenance["num_images"] == 300 and floor.provenance["images"] == "real, of shapes (train)"
    assert floor.provenance["data_fingerprint"] == shapes.fingerprint
    level = {figure.metric: figure.value for figure in floor.figures}
    images, labels = taken(shapes, 4000, count=300)
    own, noisy = (
        {
            figure.metric: figure.value
            for figure in measure_samples(Samples(real, extractor(x), extractor, labels), OF_FEATURES)
        }
        for x in (images, blurred(images))
    )
    assert own["fid"] == pytest.approx(level["fid"], rel=0.35) and noisy["fid"] > 3 * level["fid"]
    assert own["precision"] == pytest.approx(level["precision"], abs=0.06)
    assert own["coverage"] == pytest.approx(level["coverage"], abs=0.06)
    again = baseline_of_data(shapes, data, real, config, shapes_evaluators)
    assert again == floor
    few = baseline_of_features(real[:9], real[9:], config, shapes_evaluators, 300, "few")
    assert few.provenance["num_images"] == 9 and "precision" not in {figure.metric for figure in few.figures}
    assert baseline_of_data(data, data, real, config, shapes_evaluators).provenance is None, "no image is its own floor"
