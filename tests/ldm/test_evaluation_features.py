import copy
import hashlib
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cleanfid import fid
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import nn

from ldm.data.shapes import ShapesData
from ldm.evaluation.features import extractors as features
from ldm.evaluation.features import train_network
from ldm.evaluation.features.extractors import (
    INCEPTION_FILE,
    InceptionExtractor,
    TrainedExtractor,
    figure_name,
    inception_extractor,
    trained_extractor,
)
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.features.judge import Judge, Score, trained_judge
from ldm.evaluation.features.train_network import Recipe
from ldm.evaluation.folder_images import FolderImages
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.kid import kernel_distance
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_png, to_pil, to_uint8


class StandIn(nn.Module):
    """Like the published TorchScript file: `layers` maps (B, 3, 299, 299) in [-1, 1] to 2048 features."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 5, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(8), nn.Flatten())

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A stand-in file that passes for the published one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(StandIn()), buffer)
    path = tmp_path / "weights" / INCEPTION_FILE
    path.parent.mkdir()
    path.write_bytes(buffer.getvalue())
    monkeypatch.setattr(features, "INCEPTION_BYTES", len(buffer.getvalue()))
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    return path


def test_inception_features_of_tensors_equal_clean_fid_on_files(tmp_path, weights):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 40, 24, generator=generator) * 2.4 - 1.2
    folder = tmp_path / "images"
    for k, image in enumerate(images):
        save_png(to_pil(image), folder / f"{k}.png")
    extractor = inception_extractor(weights)
    expected = fid.get_folder_features(
        str(folder), InceptionV3W(str(weights.parent), download=False), num_workers=0, device="cpu", verbose=False
    )
    found = extractor(images)
    assert found.shape == (5, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    files = torch.cat([extractor(batch) for batch in FolderImages(folder).images(2, "test")])
    torch.testing.assert_close(files, found, rtol=0, atol=1e-6)
    assert figure_name("fid", extractor) == "FID" and figure_name("kid", extractor) == "KID"


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (512, 400)])
def test_the_resize_is_clean_fids(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    seen = []
    extractor = InceptionExtractor(StandIn())
    extractor.layers = lambda x: seen.append(x) or x.flatten(1)
    extractor(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    expected = build_resizer("clean")(pixels)  # (299, 299, 3) in 0..255
    assert np.abs(seen[0][0].permute(1, 2, 0).numpy() * 128 + 128 - expected).max() < 0.01


def test_no_other_file_is_opened_as_inception(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(features.torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(features.urllib.request, "urlopen", lambda *_, **__: pytest.fail("network"))
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        inception_extractor(weights)
    weights.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes"):
        inception_extractor(weights)
    with pytest.raises(UserError, match="no such file"):
        inception_extractor(tmp_path / "absent.pt")
    monkeypatch.setattr(features, "cleanfid_folder", lambda: tmp_path)
    assert inception_extractor() is None


def test_the_weights_are_downloaded_when_asked_and_checked(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(features, "cleanfid_folder", lambda: tmp_path)
    monkeypatch.setattr(features.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"something else"))
    with pytest.raises(UserError, match="SHA-256"):
        inception_extractor(download=True)
    assert not (tmp_path / INCEPTION_FILE).exists()
    monkeypatch.setattr(features.urllib.request, "urlopen", lambda *_, **__: weights.open("rb"))
    assert inception_extractor(download=True).dim == 2048
    assert inception_extractor() is not None


def test_judge_of_shapes_is_right_on_held_out_and_on_soft_pictures(shapes_evaluators):
    judge, held_out = shapes_evaluators.judge, ShapesData("validation", 32, size=(1, 1024))
    images = torch.stack([held_out[i].image for i in range(len(held_out))])
    asked = [held_out.attributes(i) for i in range(len(held_out))]
    assert set(judge.heads) == {"shape", "colour", "size", "background"} and judge.class_head == "shape"
    noise = 0.08 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for softened, least in ((images, 0.99), (blurred(images, 0.8), 0.98), (images + noise, 0.98)):
        scores = judge.score(softened, asked)
        assert min(score.share for score in scores.values()) >= least, scores
    assert min(judge.accuracy.values()) >= 0.99
    assert judge.score(images[:4], [{"colour": "red"}, {}, {}, {"colour": "red"}])["colour"].total == 2


def blurred(images, sigma):
    kernel = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    x = F.pad(images, (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def test_the_trained_distance_moves_the_right_way(shapes, shapes_evaluators):
    """Noise, blur, a dropped class and repeated images each move the distance away from that of fresh images."""
    extractor = shapes_evaluators.extractor
    images = torch.stack([shapes[i].image for i in range(1200)])
    real, fresh = images[:600], images[600:]
    reference = Gaussian.fit(extractor(real))

    def distance(x):
        return frechet_distance(reference, Gaussian.fit(extractor(x)))

    floor = distance(fresh)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(fresh.shape, generator=generator)
    noisy = [distance(fresh + s * noise) for s in (0.05, 0.15, 0.3)]
    soft = [distance(blurred(fresh, s)) for s in (0.5, 1.0, 2.0)]
    some = torch.tensor([shapes.label(600 + i) != 0 for i in range(600)])
    assert floor < noisy[0] < noisy[1] < noisy[2]
    assert floor < soft[0] < soft[1] < soft[2]
    assert distance(fresh[some]) > 1.5 * floor
    assert distance(fresh[:60].repeat(10, 1, 1, 1)) > 1.5 * floor


def test_extractors_see_what_a_png_keeps(shapes, shapes_evaluators):
    images = torch.stack([shapes[i].image for i in range(4)]) * 1.3 + 0.004
    rounded = to_uint8(images).float() / 127.5 - 1
    assert torch.equal(shapes_evaluators.extractor(images), shapes_evaluators.extractor(rounded))
    large = F.interpolate(images, (96, 80))
    assert shapes_evaluators.extractor(large).shape == (4, shapes_evaluators.extractor.dim)


def test_figures_of_trained_features_never_pass_for_fid(shapes_evaluators):
    name = shapes_evaluators.extractor.name
    assert name.startswith("trained-cnn:shapes:") and len(name.split(":")[-1]) == 8
    assert figure_name("fid", shapes_evaluators.extractor) == f"FD[{name}]"
    assert figure_name("kid", shapes_evaluators.extractor) == f"KD[{name}]"


class Unlabelled(ShapesData):
    """Shapes whose attributes and labels nobody tells; its name is hostile."""

    name = "../\x1b[31mshapes"
    class_names = ()
    attribute_names = {}  # noqa: RUF012


@pytest.fixture
def quick(monkeypatch):
    """A recipe of three steps."""
    monkeypatch.setattr(train_network, "Recipe", lambda: Recipe(steps=3, images=64, held_out=16))


def test_unlabelled_data_give_features_of_rotation_and_no_judge(quick):
    data = Unlabelled("train", 16, size=(100, 10))
    extractor = trained_extractor(data)
    assert trained_judge(data) is None
    assert set(extractor.metadata.accuracy) == {"rotation"}
    assert extractor.name.startswith("trained-cnn:31mshapes:")
    with pytest.raises(ValueError, match="cannot judge"):
        Judge(extractor.network, extractor.metadata)


def test_the_network_is_repeatable_cached_and_leaves_global_random_states_alone(quick, monkeypatch, tmp_path):
    data = ShapesData("train", 16, size=(100, 10), seed=7)
    before = torch.get_rng_state()
    first = trained_extractor(data)
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    again = trained_extractor(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.name == first.name
    train = train_network.train_network
    monkeypatch.setattr(train_network, "train_network", lambda *_, **__: pytest.fail("trained again"))
    images = torch.stack([data[i].image for i in range(5)])
    cached = trained_extractor(data)
    assert torch.equal(cached(images), first(images)) and cached.metadata == first.metadata
    monkeypatch.setattr(train_network, "train_network", train)
    (file,) = (tmp_path / "networks").iterdir()
    file.write_bytes(file.read_bytes()[:1000])  # damaged: trained again
    assert trained_extractor(data).name == first.name
    assert trained_extractor(ShapesData("train", 16, size=(100, 10), seed=8)).name != first.name


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="too few"):
        trained_extractor(ShapesData("train", 16, size=(5, 1)))


def test_score_of_nothing_asked_is_no_number_and_its_error_is_honest():
    assert math.isnan(Score().share)
    assert Score(100, 100).standard_error > 0.01
    assert Score(50, 100).standard_error == pytest.approx(0.05, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_features_judgements_and_distances_are_those_of_the_cpu(shapes, shapes_evaluators):
    extractor, judge = shapes_evaluators.extractor, shapes_evaluators.judge
    images = torch.stack([shapes[i].image for i in range(300)])
    there = TrainedExtractor(copy.deepcopy(extractor.network), extractor.metadata, "cuda")
    near, far = extractor(images), there(images.cuda())
    assert far.device.type == "cuda"
    torch.testing.assert_close(far.cpu(), near, rtol=1e-3, atol=1e-3)
    assert Judge(there.network, judge.metadata, "cuda")(images.cuda()) == judge(images)
    for a, b in ((near[:150], near[150:]), (near[:270], near[30:])):
        found = frechet_distance(Gaussian.fit(a.cuda()), Gaussian.fit(b.cuda()))
        assert found == pytest.approx(frechet_distance(Gaussian.fit(a), Gaussian.fit(b)), rel=1e-8)
        assert kernel_distance(a.cuda(), b.cuda()).value == pytest.approx(kernel_distance(a, b).value, abs=1e-9)
    trained = train_network.train_network(shapes, device="cuda", recipe=Recipe())[1]
    assert min(trained.accuracy.values()) >= 0.99
