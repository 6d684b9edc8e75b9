"""Shared by the tests of ldm: their own cache folder, shapes with instruments, a pipeline without networks."""

import os

import pytest
import torch

from ldm.data.shapes import ShapesData
from ldm.evaluation import EvaluationConfig, prepare_evaluators
from ldm.runtime.errors import UserError


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
    from ldm.training.tasks import perception

    def quickly(data, *, device="cpu"):
        return train_network.trained_network(data, device=device, recipe=train_network.Recipe(steps=8))

    for module in (features, judge, perception):
        monkeypatch.setattr(module, "trained_network", quickly)


class FakePipeline:
    """Draws a picture of the data: one that fits the request with probability 1 - 1 / (1 + scale), else any."""

    device = torch.device("cpu")

    def __init__(self, data, *, text=True, classes=False, classifier=True, dropout=0.1):
        self.data, self.has_text, self.has_classes = data, text, classes
        self.has_classifier, self.condition_dropout = classifier, dropout
        self.class_names = data.class_names if classes or classifier else ()
        self.evaluations, self.calls = 0, []
        self.by_caption = {data.captions(i)[0]: i for i in range(len(data))}

    def check(self, requests, sampling):
        for request in requests:
            if request.class_label is not None and not self.has_classes and not sampling.classifier_scale:
                raise UserError("class label for a model without classes")
            if request.class_label is None and sampling.classifier_scale:
                raise UserError("classifier without a target")

    def generate(self, requests, sampling=None, *, seed=0, first_index=0, batch_size=64, on_step=None, shard=(0, 1)):
        self.check(requests, sampling)
        self.calls.append((list(requests), sampling, seed))
        self.evaluations = 0
        strength = sampling.guidance_scale + sampling.classifier_scale
        branches = 1 + (sampling.guidance_scale not in (0, 1)) + (sampling.classifier_scale > 0)

        def batches():
            for start in range(shard[0] * batch_size, len(requests), shard[1] * batch_size):
                chunk = requests[start : start + batch_size]
                self.evaluations += len(chunk) * branches * sampling.num_inference_steps
                yield torch.stack(
                    [self._draw(first_index + start + k, seed, each, strength) for k, each in enumerate(chunk)]
                )

        return batches()

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
