"""A folder of images on the data of a model: the features, the name and the figures of the model's own evaluation."""

import json

import pytest

from ldm.data.config import DataConfig
from ldm.data.open import open_data
from ldm.evaluation.conditions import eval_conditions
from ldm.runtime.images import save_png, to_pil
from ldm.sampling.config import SamplingConfig
from ldm.sampling.pipeline import Pipeline

DATA = ["--data", "shapes", "--image-size", 16, "--shapes-train", 64, "--shapes-validation", 32]
FEW = [
    "--num-reference",
    24,
    "--bootstrap",
    0,
    "--extractor",
    "trained",
    "--metrics",
    "fid",
    "recall",
    "--device",
    "cpu",
]


@pytest.fixture
def drawn(models, tmp_path):
    """The samples that `ldm evaluate` draws of the class-conditional model, as a folder of PNG."""
    pipeline = Pipeline.load(models.classes)
    data = open_data(DataConfig("shapes", image_size=16, shapes_train=64, shapes_validation=32), "validation")
    requests = [condition.request for condition in eval_conditions(pipeline, data, 12, 0)]
    (tmp_path / "drawn").mkdir()
    for images in pipeline.generate(requests, SamplingConfig(num_inference_steps=2), seed=0):
        for number, image in enumerate(images):
            save_png(to_pil(image), tmp_path / "drawn" / f"{number}.png")
    return tmp_path / "drawn"


@pytest.mark.parametrize("as_flag", [False, True], ids=["FOLDER", "--fake FOLDER"])
def test_a_models_samples_in_a_folder_have_the_models_figures(drawn, as_flag, models, ldm, tmp_path, quick_networks):
    files = {name: tmp_path / f"{name}.json" for name in ("model", "folder")}
    short = ["--num-images", 12, "--num-inference-steps", 2]
    assert ldm("evaluate", models.classes, *DATA, *FEW, *short, "--output", files["model"]).code == 0
    folder = ["--fake", drawn] if as_flag else [drawn]
    found = ldm("evaluate", *folder, *DATA, *FEW, "--output", files["folder"])
    assert found.code == 0, found.err
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    figures = {name: {f["name"]: f["value"] for f in result["figures"]} for name, result in results.items()}
    assert figures["folder"].keys() <= figures["model"].keys() and len(figures["folder"]) == 2
    for name, value in figures["folder"].items():
        assert "trained-cnn:shapes" in name and value == pytest.approx(figures["model"][name], rel=1e-4)
    assert results["folder"]["manifest"]["data"] == "shapes" and results["folder"]["floor"]
    assert ldm("compare", "results", files["model"], files["folder"]).code == 0, "measured alike"


def test_what_a_folder_of_images_needs_is_said(drawn, refused, tmp_path):
    refused(["evaluate", drawn, "--device", "cpu"], "drawn: nothing to compare", "--data", "--real FOLDER")
    refused(["evaluate", drawn, "--real", drawn, *DATA], "--real and --data: give one of them")
    refused(["evaluate", drawn, "--data", "shapes", "--device", "cpu"], "16 x 16", "32 x 32", "--resize 32")
