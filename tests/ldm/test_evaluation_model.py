import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.data.shapes import ShapesData
from ldm.evaluation.conditions import balanced_indices, eval_conditions
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.features import extractors as features
from ldm.evaluation.features import train_network
from ldm.evaluation.features.train_network import Recipe
from ldm.evaluation.folder_images import FolderImages
from ldm.evaluation.folders import evaluate_folders
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_png, to_pil
from ldm.sampling.config import SamplingConfig

APPEARANCE = ("saturation", "contrast", "clipped", "sharpness")  # measured beside the distances
FEW = EvaluationConfig(num_images=120, num_reference=300, batch_size=50)


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(1, 400))


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "cleanfid_folder", lambda: tmp_path)


def test_conditions_are_balanced_repeatable_and_tell_what_is_asked(data, fake_pipeline, shapes_evaluators):
    judge = shapes_evaluators.judge
    conditions = eval_conditions(fake_pipeline(data), data, 60, 3, judge=judge)
    assert conditions == eval_conditions(fake_pipeline(data), data, 60, 3, judge=judge)
    assert conditions != eval_conditions(fake_pipeline(data), data, 60, 4, judge=judge)
    assert conditions[:30] == eval_conditions(fake_pipeline(data), data, 30, 3, judge=judge)
    assert all(each.request.class_label is None for each in conditions)
    assert all(
        each.expected_attributes["colour"] in each.request.prompt and len(each.expected_attributes) == 4
        for each in conditions
    )
    for model in (fake_pipeline(data, text=False, classes=True), fake_pipeline(data, text=False)):
        labelled = eval_conditions(model, data, 60, 3, classifier=True, judge=judge)
        counts = np.bincount([each.request.class_label for each in labelled])
        assert counts.tolist() == [10] * 6
        assert all(
            each.expected_attributes == {"shape": data.class_names[each.request.class_label]} for each in labelled
        )
        assert all(each.request.prompt == "" for each in labelled)
    indices = balanced_indices(data, 600, 0)
    assert len(set(indices[:200])) == 200 and len(indices) == 600


def test_a_better_model_has_better_figures(data, fake_pipeline, shapes_evaluators):
    pipeline = fake_pipeline(data)
    weak, strong = (
        evaluate_model(pipeline, data, SamplingConfig(guidance_scale=scale), FEW, evaluators=shapes_evaluators)
        for scale in (1.0, 50.0)
    )
    for name in ("shape", "colour", "background"):
        figure = strong[f"accuracy/{name}"]
        assert figure.value > 0.9 and figure.higher_is_better and 0 < figure.standard_error < 0.05
        assert weak[f"accuracy/{name}"].value < 0.75
    assert weak.evaluations_per_image == 50 and strong.evaluations_per_image == 100
    assert weak["fid"].name == f"FD[{shapes_evaluators.extractor.name}]"
    assert weak["fid"].value > 0 and weak["kid"].standard_error > 0
    with pytest.raises(KeyError, match="measured: fid, kid"):
        weak["recall"]


def test_the_result_is_repeatable_told_in_full_and_plain_json(data, fake_pipeline, shapes_evaluators):
    sampling = SamplingConfig("dpmpp_2m", 7, guidance_scale=3.0)
    first, again = (
        evaluate_model(fake_pipeline(data), data, sampling, FEW, evaluators=shapes_evaluators) for _ in range(2)
    )
    assert first.figures == again.figures
    other = evaluate_model(
        fake_pipeline(data), data, sampling, replace(FEW, batch_size=17), evaluators=shapes_evaluators
    )
    for one, two in zip(first.figures, other.figures, strict=True):
        assert one.value == pytest.approx(two.value, rel=1e-3)
    manifest = first.manifest
    assert manifest["num_images"] == 120 and manifest["num_reference"] == 300 and manifest["seed"] == 0
    assert manifest["sampling"]["sampler"] == "dpmpp_2m" and manifest["sampling"]["guidance_scale"] == 3.0
    assert manifest["extractor"] == shapes_evaluators.extractor.name and "8 bits" in manifest["preprocessing"]
    assert manifest["judge_accuracy"]["shape"] > 0.99 and manifest["data_fingerprint"] == data.fingerprint
    told = " ".join(first.warnings)
    assert "N = 120" in told and "rank-deficient" in told and "not Inception" in told
    text = json.dumps(first.to_json(), allow_nan=False)
    assert EvaluationResult.from_json(json.loads(text)).figures == first.figures


def test_instruments_are_those_of_the_training_data(data, shapes, fake_pipeline, shapes_evaluators):
    given = evaluate_model(fake_pipeline(data), data, None, FEW, evaluators=shapes_evaluators)
    assert evaluate_model(fake_pipeline(data), data, None, FEW, train_data=shapes).figures == given.figures


def test_without_metrics_only_the_judge_speaks(data, fake_pipeline, shapes_evaluators):
    only = Evaluators(None, shapes_evaluators.judge)
    result = evaluate_model(fake_pipeline(data), data, None, replace(FEW, metrics=()), evaluators=only)
    assert [figure.metric for figure in result.figures] == [
        "accuracy/shape", "accuracy/colour", "accuracy/size", "accuracy/background",
    ]  # fmt: skip
    text_free = fake_pipeline(data, text=False, classifier=False)
    nothing_asked = evaluate_model(text_free, data, None, FEW, evaluators=shapes_evaluators)
    assert [figure.metric for figure in nothing_asked.figures] == ["fid", "kid", *APPEARANCE]


def test_wrong_questions_are_refused_before_any_sampling(data, fake_pipeline, monkeypatch):
    monkeypatch.setattr(train_network, "train_network", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(fake_pipeline, "generate", lambda *_, **__: pytest.fail("sampled"))
    silent = ShapesData("train", 32, size=(50, 1))
    silent.has_captions = False
    with pytest.raises(UserError, match="no captions"):
        evaluate_model(fake_pipeline(data), silent, None, FEW)
    other = ShapesData("train", 32, size=(50, 1))
    other.class_names = ("cat", "dog")
    with pytest.raises(UserError, match="are not those of the model"):
        evaluate_model(fake_pipeline(data, classes=True), other, None, FEW)
    with pytest.raises(UserError, match="`inception_weights` FILE"):
        evaluate_model(fake_pipeline(data), data, None, replace(FEW, extractor="inception"))
    with pytest.raises(UserError, match='did you mean "fid"'):
        EvaluationConfig(metrics=("fidd",))
    with pytest.raises(UserError, match="`num_images`: expected 4 or more"):
        EvaluationConfig(num_images=1)


def write(folder, images):
    for k, image in enumerate(images):
        save_png(to_pil(image), folder / f"{k:03d}.png")
    return folder


def test_two_folders(tmp_path, data, shapes_evaluators):
    images = torch.stack([data[i].image for i in range(60)])
    real, same, noisy = (
        write(tmp_path / name, x)
        for name, x in (("real", images), ("same", images), ("noisy", images + 0.3 * torch.randn_like(images)))
    )
    config = EvaluationConfig(batch_size=16)
    equal = evaluate_folders(real, same, config, evaluators=shapes_evaluators)
    apart = evaluate_folders(real, noisy, config, evaluators=shapes_evaluators)
    scale = float(shapes_evaluators.extractor(images).var(0).sum())
    assert abs(equal["fid"].value) < 1e-6 * scale < 1e-2 * apart["fid"].value
    assert equal.manifest["num_images"] == 60 and equal.manifest["sizes"] == [{"32x32": 60}, {"32x32": 60}]
    assert not [figure for figure in equal.figures if figure.metric.startswith("accuracy")]

    assert equal.manifest["floor"]["num_images"] == 30 and {each.metric for each in equal.baseline} == {
        "fid",
        "kid",
        *APPEARANCE,
    }
    assert equal["fid"].value < equal.baseline[0].value < apart["fid"].value


def test_images_of_different_sizes_are_resized_only_when_asked(tmp_path, data, shapes_evaluators):
    images = torch.stack([data[i].image for i in range(12)])
    real, small = write(tmp_path / "real", images), torch.nn.functional.interpolate(images, (20, 24))
    other, config = write(tmp_path / "small", small), EvaluationConfig(batch_size=16)
    with pytest.raises(UserError, match=r"`real`: has images of 32 x 32, `fake` of 24 x 20: .* `resize` PIXELS"):
        evaluate_folders(real, other, config, evaluators=shapes_evaluators)
    mixed = write(tmp_path / "mixed", images[:6])
    save_png(to_pil(small[0]), mixed / "odd.png")
    with pytest.raises(UserError, match="mixed: holds images of 32 x 32, 24 x 20; give `resize`"):
        evaluate_folders(real, mixed, config, evaluators=shapes_evaluators)
    found = evaluate_folders(real, other, config, evaluators=shapes_evaluators, resize=32)
    assert found.manifest["sizes"] == [{"32x32": 12}, {"24x20": 12}]
    assert found.manifest["resized"] == "to 32 x 32, bicubic antialiased"


def test_bad_files_of_two_folders_are_left_out_only_up_to_the_number_given(tmp_path, data, shapes_evaluators, caplog):
    images = [data[i].image for i in range(12)]
    real, fake = write(tmp_path / "real", images), write(tmp_path / "fake", images)
    config = EvaluationConfig(batch_size=16)
    whole = next(real.glob("*.png")).read_bytes()
    (real / "cut.png").write_bytes(whole[: len(whole) // 2])
    (fake / "text.png").write_bytes(b"no image")
    (fake / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"fake.*2 of 14 images cannot be read: .*`max_bad_images` 2"):
        evaluate_folders(real, fake, config, evaluators=shapes_evaluators, max_bad_images=1)
    with pytest.raises(UserError, match="`max_bad_images`"):
        evaluate_folders(real, fake, config, evaluators=shapes_evaluators)
    result = evaluate_folders(real, fake, config, evaluators=shapes_evaluators, max_bad_images=2)
    assert (result.manifest["num_reference"], result.manifest["num_images"]) == (12, 12)
    assert result["fid"].value < 1e-3 and "text.png (not an image)" in caplog.text


def test_features_for_two_folders_are_trained_on_the_real_one(tmp_path, data, monkeypatch):
    monkeypatch.setattr(train_network, "Recipe", lambda: Recipe(steps=3, images=64, held_out=16))
    images = [data[i].image for i in range(40)]
    result = evaluate_folders(write(tmp_path / "real", images), write(tmp_path / "fake", images[:20]))
    assert result["fid"].name.startswith("FD[trained-cnn:real:")


def test_folders_that_cannot_be_compared_are_refused_by_name(tmp_path, data, shapes_evaluators):
    images = [data[i].image for i in range(5)]
    real = write(tmp_path / "real", images)
    one = write(tmp_path / "one", images[:1])
    (tmp_path / "empty").mkdir()
    bad = write(tmp_path / "bad", images)
    (bad / "002.png").write_bytes((bad / "002.png").read_bytes()[:60])
    for folder, message in ((one, "holds 1 image"), (tmp_path / "empty", "holds no file"), (bad, "002.png")):
        with pytest.raises(UserError, match=message):
            evaluate_folders(real, folder, evaluators=shapes_evaluators)
    with pytest.raises(UserError, match="no such folder"):
        evaluate_folders(tmp_path / "absent", real, evaluators=shapes_evaluators)


def test_the_sheet_beside_sampled_pictures_is_not_one_of_them(tmp_path, data):
    folder = write(tmp_path / "samples", [data[i].image for i in range(3)])
    save_png(to_pil(data[0].image), folder / "grid.png")
    assert len(FolderImages(folder)) == 4
    (folder / "settings.json").write_text("{}")
    images = FolderImages(folder)
    assert images.names == ("000.png", "001.png", "002.png")
    assert images[-1].index == 2 and images[0, 7].image.shape == (3, 32, 32)
    with pytest.raises(IndexError):
        images[3]
