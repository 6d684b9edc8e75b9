"""Reference files: the same figures as from the images, portable, and refused where they are of something else."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from cleanfid import fid

from ldm.comparison import Comparison, ComparisonConfig
from ldm.comparison.compare import compare
from ldm.data.shapes import ShapesData
from ldm.evaluation import evaluators as making
from ldm.evaluation.conditions import eval_conditions
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.evaluators import Evaluators, prepare_extractor
from ldm.evaluation.features import extractors
from ldm.evaluation.features.extractors import InceptionExtractor, TrainedExtractor
from ldm.evaluation.features.feature_cache import features_of
from ldm.evaluation.features.small_network import NetworkMetadata, SmallNetwork
from ldm.evaluation.folders import evaluate_folders
from ldm.evaluation.references import ReferenceFile, save_reference
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_png, to_pil
from ldm.sampling.config import SamplingConfig

METRICS = ("fid", "kid", "sliced_fid", "precision", "recall")
CONFIG = EvaluationConfig(metrics=METRICS, num_images=40, bootstrap=5, batch_size=32, judge=False)


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(200, 90))


@pytest.fixture(scope="module")
def train():
    return ShapesData("train", 32, size=(200, 90))


@pytest.fixture(scope="module")
def extractor():
    """An untrained network: what it sees is not asked here."""
    heads = {"shape": ("a", "b", "c")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallNetwork(32, heads).eval().requires_grad_(False)
    return TrainedExtractor(network, NetworkMetadata("shapes", 32, heads, "shape", {"shape": 0.5}, 10, 5))


@pytest.fixture
def file(tmp_path, data, train, extractor):
    save_reference(tmp_path / "reference.npz", extractor, data, train, CONFIG)
    return tmp_path / "reference.npz"


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "cleanfid_folder", lambda: tmp_path)


def test_a_reference_gives_the_figures_of_the_images(data, train, extractor, file, fake_pipeline, monkeypatch):
    evaluators = Evaluators(extractor, None)
    direct = evaluate_model(fake_pipeline(data), data, None, CONFIG, evaluators=evaluators, train_data=train)
    monkeypatch.setattr(making, "trained_extractor", lambda *_, **__: pytest.fail("trained"))
    config = replace(CONFIG, reference=str(file))
    found = evaluate_model(fake_pipeline(data), data, None, config, train_data=train)  # by the network in the file
    assert found.figures == direct.figures and found.baseline == direct.baseline and len(found.baseline) == len(METRICS)
    told = found.manifest["reference"]
    assert told["file"] == "reference.npz" and told["count"] == 90 and told["data_fingerprint"] == data.fingerprint
    assert found.manifest["floor"]["images"] == "real, of shapes (train)"
    assert direct.manifest["weights"].startswith("as published")


def test_a_folder_is_compared_with_a_reference_alone(data, extractor, file, tmp_path):
    for k in range(20):
        save_png(to_pil(data[k].image), tmp_path / "fake" / f"{k}.png")
    found = evaluate_folders(None, tmp_path / "fake", replace(CONFIG, reference=str(file)))
    assert found["fid"].name == f"FD[{extractor.name}]" and found["precision"].value == 1
    assert found.manifest["floor"]["num_images"] == 20 and len(found.baseline) == len(METRICS)
    small = tmp_path / "small"
    for k in range(8):
        save_png(to_pil(data[k].image[:, :16, :16]), small / f"{k}.png")
    with pytest.raises(UserError, match="`fake`: has images of 16 x 16, the reference is of 32 x 32; give `resize` 32"):
        evaluate_folders(None, small, replace(CONFIG, reference=str(file), metrics=("fid",)))
    with pytest.raises(UserError, match="either as `real` FOLDER or as `reference` FILE"):
        evaluate_folders(tmp_path / "fake", small, replace(CONFIG, reference=str(file)))


def test_references_of_something_else_are_refused(data, train, extractor, file, fake_pipeline, monkeypatch):
    config, pipeline = replace(CONFIG, reference=str(file)), fake_pipeline(data)
    monkeypatch.setattr(fake_pipeline, "generate", lambda *_, **__: pytest.fail("sampled"))
    monkeypatch.setattr(making, "trained_extractor", lambda *_, **__: pytest.fail("trained"))
    other = ShapesData("validation", 32, size=(200, 90), seed=1)
    with pytest.raises(UserError, match=r"made of shapes \(validation, 32 .*\), not of .*`allow_other_reference`"):
        evaluate_model(fake_pipeline(other), other, None, config)
    allowed = replace(config, allow_other_reference=True)
    monkeypatch.undo()
    found = evaluate_model(fake_pipeline(other), other, None, allowed)
    assert found.manifest["reference"]["data_fingerprint"] == data.fingerprint != found.manifest["data_fingerprint"]
    with pytest.raises(UserError, match="Inception's weights are not here"):
        prepare_extractor(data, replace(config, extractor="inception"))
    foreign = replace(extractor.metadata, data_name="another")
    with pytest.raises(UserError, match=r"its features are of trained-cnn:shapes.*of trained-cnn:another"):
        ReferenceFile(file).check_extractor(TrainedExtractor(extractor.network, foreign))
    with pytest.raises(UserError, match="no such file"):
        evaluate_model(pipeline, data, None, replace(CONFIG, reference="nowhere.npz"))


def test_the_moments_of_other_tools_are_good_for_fid_alone(data, tmp_path, fake_pipeline):
    """`mu` and `sigma`, as clean-fid and pytorch-fid write them; and theirs is the distance from ours."""

    class Pretender(extractors.Extractor):
        name, dim, preprocessing = "inception", 12, InceptionExtractor.preprocessing

        def __call__(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1).float()

    drawn = np.random.default_rng(0).normal(size=(50, 12)) * 0.3
    np.savez_compressed(tmp_path / "theirs.npz", mu=drawn.mean(0), sigma=np.cov(drawn, rowvar=False))
    config = replace(CONFIG, metrics=("fid",), reference=str(tmp_path / "theirs.npz"))
    found = evaluate_model(fake_pipeline(data), data, None, config, evaluators=Evaluators(Pretender(), None))
    requests = [each.request for each in eval_conditions(fake_pipeline(data), data, CONFIG.num_images, CONFIG.seed)]
    drawn_images = torch.cat(list(fake_pipeline(data).generate(requests, SamplingConfig(), seed=0)))
    mine = Pretender()(drawn_images).double().numpy()
    expected = fid.frechet_distance(
        drawn.mean(0), np.cov(drawn, rowvar=False), mine.mean(0), np.cov(mine, rowvar=False)
    )
    assert found["fid"].name == "FID" and found["fid"].value == pytest.approx(expected, rel=1e-6)
    assert found.manifest["reference"]["count"] == "not known"
    with pytest.raises(UserError, match=r"`metrics` kid: needs features, and .*theirs.npz holds moments alone"):
        evaluate_model(fake_pipeline(data), data, None, replace(config, metrics=("fid", "kid")))


def test_other_tools_read_ours(file, data, extractor):
    with np.load(file) as theirs:  # without pickle
        mu, sigma, kept = theirs["mu"], theirs["sigma"], theirs["features"]
    images = torch.stack([data[i].image for i in range(len(data))])
    assert np.abs(kept - extractor(images).numpy()).max() < 1e-6
    np.testing.assert_allclose(mu, kept.astype(float).mean(0), atol=1e-6)
    np.testing.assert_allclose(sigma, np.cov(kept.astype(float), rowvar=False), atol=1e-6)


def changed(file, **arrays):
    with np.load(file) as content:
        kept = dict(content) | arrays
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    file.write_bytes(buffer.getvalue())


def test_nothing_in_a_file_is_trusted(file, tmp_path):
    sound = file.read_bytes()
    for damage in (sound[: len(sound) // 2], b"", b"PK" + bytes(100)):
        file.write_bytes(damage)
        with pytest.raises(UserError, match=r"not a sound .npz file"):
            ReferenceFile(file)
    file.write_bytes(sound)
    with pytest.raises(UserError, match="not a sound"):
        changed(file, mu=np.array([print], dtype=object))
        ReferenceFile(file)
    file.write_bytes(sound)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("mu.npy", huge.getvalue())
    with pytest.raises(UserError, match="not a sound"):
        ReferenceFile(tmp_path / "huge.npz")
    for wrong in ({"features": np.zeros((4, 9))}, {"facts": np.frombuffer(b'{"run": 1}', np.uint8)}):
        file.write_bytes(sound)
        changed(file, **wrong)
        with pytest.raises(UserError, match="`reference`"):
            ReferenceFile(file)
    file.write_bytes(sound)
    changed(file, features=np.full((5, 176), np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        ReferenceFile(file).real  # noqa: B018
    file.write_bytes(sound)
    with np.load(file) as content:
        weight = next(name for name in content.files if name.startswith("network."))
        changed(file, **{weight: content[weight] + 1})
    with pytest.raises(UserError, match="the network in it"):
        ReferenceFile(file).extractor()


def test_features_are_computed_once(data, extractor, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    first = features_of(extractor, data, range(20), batch_size=7)
    monkeypatch.setattr(TrainedExtractor, "__call__", lambda *_: pytest.fail("computed again"))
    assert torch.equal(features_of(extractor, data, range(20), batch_size=9), first)
    (kept,) = (tmp_path / "features").iterdir()
    monkeypatch.undo()
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    kept.write_bytes(kept.read_bytes()[:500])  # damaged: computed again
    assert torch.equal(features_of(extractor, data, range(20), batch_size=20), first)
    assert not torch.equal(features_of(extractor, data, range(1, 21), batch_size=20), first)


def test_a_comparison_has_a_real_data_baseline(data, train, extractor, fake_pipeline, tmp_path):
    config, evaluators = (
        ComparisonConfig(methods=("none", "cfg"), guidance_scales=(3.0,)),
        Evaluators(extractor, None),
    )
    settings = {"evaluation": CONFIG, "evaluators": evaluators, "output_dir": tmp_path, "train_data": train}
    comparison = compare(fake_pipeline(data), data, config, **settings)
    direct = evaluate_model(fake_pipeline(data), data, None, CONFIG, evaluators=evaluators, train_data=train)
    assert comparison.baseline.figures == direct.baseline and comparison.baseline.provenance == direct.manifest["floor"]
    last, note = (tmp_path / "comparison.txt").read_text().splitlines()[-2:]
    assert last.startswith("real images") and f"{comparison.baseline.figures[0].value:.4g}" in last
    assert note == "floor: the same of 40 images: real, of shapes (train)"
    page = (tmp_path / "report.html").read_text()
    assert "<tfoot>" in page and note in page
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert Comparison.from_json(stored).baseline == comparison.baseline
