"""Bits per dimension of a model that is exact for Gaussian images, whose entropy is known; and the command line."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from autoencoders import Autoencoder, AutoencoderConfig
from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.config import ConditioningConfig
from ldm.data.dataset import Example
from ldm.evaluation.config import EvaluationConfig, LikelihoodConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.metrics.likelihood import measure_likelihood
from ldm.sampling.forward_process import Process
from ldm.sampling.pipeline import Pipeline
from samplers import DiscreteSchedule, SampleTarget

STD, MEANS, SIDE = 0.2, (-0.3, 0.3), 4
SCHEDULE = DiscreteSchedule("cosine")
# of N(m, STD^2) in bins of width 1 / 128
ENTROPY = math.log2(STD * math.sqrt(2 * math.pi * math.e)) + 7
CONFIG = LikelihoodConfig(likelihood_images=60, bound_steps=300, flow_steps=100, flow_probes=1)


class Exact(torch.nn.Module):
    """E[x0 | x_t] of pixels N(mean of the class, STD^2); of the null class, of a mean of 0."""

    def __init__(self, std=STD):
        super().__init__()
        self.std, self.config = std, SimpleNamespace(sample_size=SIDE)

    def forward(self, x, t, class_labels=None, context=None):
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in SCHEDULE.at(t))
        mean = torch.tensor([*MEANS, 0.0])[class_labels].view(-1, 1, 1, 1)
        return mean + self.std**2 * alpha * (x - alpha * mean) / ((alpha * self.std) ** 2 + sigma**2)


class Images:
    """8-bit pixels of the two classes in turn."""

    name, split, image_size, class_names, has_captions, fingerprint = "toy", "validation", SIDE, ("a", "b"), False, "0"

    def __init__(self, turned=False):
        noise = torch.randn(200, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        means = torch.tensor(MEANS).repeat(100).view(-1, 1, 1, 1)
        self.images = ((means + STD * noise + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
        self.turned = turned

    def __len__(self):
        return len(self.images)

    def label(self, index):
        return (index + self.turned) % 2

    def captions(self, index):
        return ()

    def __getitem__(self, index):
        return Example(self.images[index], self.label(index), "", index)


def pipeline_of(autoencoder, unet):
    conditioner = Conditioner.build(ConditioningConfig(text_encoder=None), ("a", "b"), None, seed=0)
    return Pipeline(autoencoder, unet, conditioner, Process(SCHEDULE, SampleTarget()))


@pytest.fixture(scope="module")
def exact():
    return pipeline_of(Autoencoder(AutoencoderConfig(bottleneck="identity")), Exact())


def bits(found):
    return {figure.metric.removeprefix("bits_per_dim/"): figure for figure in found.figures}


def test_bits_of_pixels_are_their_entropy(exact):
    found = measure_likelihood(exact, Images(), CONFIG)
    figures = bits(found)
    flow, bound = figures["flow"], figures["bound"]
    assert flow.name == "bits/dim[8-bit pixels, flow]"
    assert 0 < flow.standard_error < 0.03 and abs(flow.value - ENTROPY) < 4 * flow.standard_error + 0.01
    loose = bits(measure_likelihood(exact, Images(), replace(CONFIG, bound_steps=75, flow_steps=0)))["bound"]
    gap = bound.value - ENTROPY
    assert -4 * bound.standard_error < gap < 0.25 and loose.value - ENTROPY > 2 * gap, "a bound, closer with more steps"
    terms = [figures[f"bound/{term}"].value for term in ("prior", "diffusion", "reconstruction")]
    assert sum(terms) == pytest.approx(bound.value, abs=1e-6) and 0 <= terms[0] < 1e-3 < terms[1]
    assert found.manifest["dimensions"] == 3 * SIDE**2 and found.manifest["dimensions_are"] == "3x4x4 of pixels"


def test_images_are_measured_under_their_own_class(exact):
    config = replace(CONFIG, bound_steps=0)
    right, wrong = (bits(measure_likelihood(exact, Images(turned), config))["flow"].value for turned in (False, True))
    # the cost of the wrong mean: (m - m')^2 / (2 STD^2) nats
    assert wrong - right == pytest.approx((MEANS[1] - MEANS[0]) ** 2 / (2 * STD**2 * math.log(2)), rel=0.03)


def test_it_does_not_depend_on_the_batch_size(exact):
    config = replace(CONFIG, likelihood_images=12, bound_steps=20, flow_steps=10, flow_probes=2)
    one, all_ = (bits(measure_likelihood(exact, Images(), config, batch_size=size)) for size in (5, 64))
    for name, figure in one.items():
        assert figure.value == pytest.approx(all_[name].value, abs=1e-5)


def test_bits_of_latents_are_a_density(exact):
    """Latents twice the pixels' size have log2(2) more bits each, and no bins."""

    class Doubled(Autoencoder):
        is_identity = False

        def encode(self, images):
            encoding = super().encode(images)
            return type(encoding)(2 * encoding.mean, torch.full_like(encoding.mean, 0.1))

    model = Doubled(AutoencoderConfig(bottleneck="identity"))
    std = math.hypot(2 * STD, 0.1)  # of the mean and the posterior together
    unet = Exact(std)
    images = Images()
    images.images = images.images - torch.tensor(MEANS).repeat(100).view(-1, 1, 1, 1)
    images.class_names, images.label = ("a", "b"), lambda index: -1
    found = measure_likelihood(pipeline_of(model, unet), images, CONFIG)
    flow = bits(found)["flow"]
    expected = math.log2(std * math.sqrt(2 * math.pi * math.e))
    assert abs(flow.value - expected) < 4 * flow.standard_error + 0.01
    assert (
        flow.name == "bits/dim[latent density, flow]" and found.manifest["bits_of"] == "density of calibrated latents"
    )


def test_beside_distances_and_alone(exact):
    config = EvaluationConfig(metrics=("bits_per_dim",))
    result = evaluate_model(exact, Images(), None, config, likelihood=replace(CONFIG, bound_steps=0))
    assert [figure.metric for figure in result.figures] == ["bits_per_dim/flow"]
    assert result.manifest["likelihood"]["guidance"] == "none" and "extractor" not in result.manifest
    assert json.dumps(result.to_json(), allow_nan=False)


def test_the_command_line(models, ldm, refused, tmp_path):
    few = ["--device", "cpu", "--metrics", "bits_per_dim", "--likelihood-images", 6]
    steps = ["--bound-steps", 5, "--flow-steps", 4]
    for model in (models.text, models.classes, models.unconditional):
        found = ldm("evaluate", model, *few, *steps, "--output", tmp_path / "figures.json")
        assert found.code == 0, found.err
        assert "bits/dim[latent density, bound]: " in found.out and " ± " in found.out
        assert "dimensions 256; dimensions_are 4x8x8 of latents" in found.out
        figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
        assert [figure["metric"].split("/", 1)[1] for figure in figures] == [
            "bound", "bound/prior", "bound/diffusion", "bound/reconstruction", "flow",
        ]  # fmt: skip
    refused(["evaluate", models.text, *few, "--flow-probes", 0], "--flow-probes", "1 or more")
    refused(["evaluate", models.text, *few, "--bound-steps", 0, "--flow-steps", 0], "nothing to measure")
    refused(["evaluate", models.text, *few, "--bound-steps", 2000], "2000 steps")
    refused(["evaluate", models.text, *few, "--guidance-scale", 3], "leave guidance off")
    refused(["evaluate", "--real", tmp_path, "--fake", tmp_path, *few], "bits_per_dim needs a model")
    refused(["compare", models.text, *few[:4], "--output-dir", tmp_path / "out"], "ldm evaluate")
