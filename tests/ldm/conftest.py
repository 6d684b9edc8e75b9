"""Shared by the tests of ldm: their own cache folder, shapes with instruments, a pipeline without networks."""

import os
from types import SimpleNamespace

import pytest
import torch

from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import prepare_evaluators
from ldm.runtime.errors import UserError
from ldm.sampling.image_model import ImageModel
from ldm.sampling.plan import SamplingPlan, parse_guidances


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The user's cache folder is neither read nor written."""
    before = os.environ.get("LDM_CACHE")
    os.environ["LDM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LDM_CACHE"]
    else:
        os.environ["LDM_CACHE"] = before


@pytest.fixture(scope="session")
def shapes():
    return ShapesData("train", 32, size=(8192, 1024))


@pytest.fixture(scope="session")
def shapes_evaluators(shapes):
    """Trained in full, once a session: about 15 s on one core."""
    return prepare_evaluators(shapes, EvaluationConfig(extractor="trained"))


@pytest.fixture
def quick_networks(monkeypatch):
    """The networks that trainings and evaluations ask learn for a few steps only: what they know is not asked."""
    from ldm.evaluation.features import extractors as features
    from ldm.evaluation.features import judge, train_network
    from ldm.training.tasks import images

    def quickly(data, *, device="cpu"):
        return train_network.trained_network(data, device=device, recipe=train_network.Recipe(steps=8))

    for module in (features, judge, images):
        monkeypatch.setattr(module, "trained_network", quickly)


class FakePipeline(ImageModel):
    """Draws an image of the data: one that fits the request with probability 1 - 1 / (1 + scale), else any."""

    device, folder = torch.device("cpu"), None

    def __init__(self, data, *, text=True, classes=False, classifier=True, dropout=0.1):
        self.data, self.has_text, self.has_classes = data, text, classes
        self.networks = SimpleNamespace(
            classifiers={"classifier": None} if classifier else {}, condition_dropout=dropout
        )
        self.class_names = data.class_names if classes or classifier else ()
        self.calls = []
        self.by_caption = {data.captions(i)[0]: i for i in range(len(data))}

    @property
    def image_size(self):
        return self.data.image_size

    def resolve(self, sampling=None):
        if isinstance(sampling, SamplingPlan):
            return sampling
        config = self.with_defaults(sampling)
        guidances = parse_guidances(config)
        names = tuple(map(str, range(len(guidances))))
        return SamplingPlan(config=config, guidances=guidances, guidance_names=names)

    def check(self, requests, sampling=None):
        scale = self.resolve(sampling).config.classifier_scale
        for request in requests:
            if request.class_label is not None and not self.has_classes and not scale:
                raise UserError("class label for a model without classes")
            if request.class_label is None and scale:
                raise UserError("classifier without a target")

    def generate(self, requests, sampling=None, *, seed=0, **options):
        self.calls.append((list(requests), self.resolve(sampling).config, seed))
        return super().generate(requests, sampling, seed=seed, **options)

    def sample_batch(self, requests, plan, seed, first_index, position, on_step=None):
        config = plan.config
        branches = 1 + (config.guidance_scale not in (0, 1)) + (config.classifier_scale > 0)
        self.evaluations += len(requests) * branches * config.num_inference_steps
        strength, first = config.guidance_scale + config.classifier_scale, first_index + position
        return torch.stack([self._draw(first + row, seed, r, strength) for row, r in enumerate(requests)])

    def _draw(self, index, seed, request, strength):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        u, any_of_them = torch.rand((), generator=generator), torch.randint(len(self.data), (), generator=generator)
        fits = u < 1 - 1 / (1 + strength)
        number = int(any_of_them)
        if fits and self.has_text:
            number = self.by_caption[request.prompt]
        elif fits and request.class_label is not None:
            number = next(i for i in range(len(self.data)) if self.data.label(i) == request.class_label)
        image = self.data[number].image
        return (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture
def fake_pipeline():
    return FakePipeline
