import json

import pytest
import torch
from PIL import Image

from ldm.comparison import ComparisonConfig, rank_comparison
from ldm.comparison.compare import compare
from ldm.comparison.methods import plan_variants
from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.runtime.errors import UserError
from ldm.sampling.config import SamplingConfig
from ldm.sampling.identity import model_identity

FEW = EvaluationConfig(num_images=40, num_reference=60, batch_size=25)
SCALES = ComparisonConfig(guidance_scales=(1.0, 3.0, 7.5), classifier_scales=(4.0,), rows=3)
LABELS = [
    "unconditional", "none", "cfg 3", "cfg 7.5", "classifier 4",
    "cfg+classifier 1, 4", "cfg+classifier 3, 4", "cfg+classifier 7.5, 4",
]  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(1, 120))


def test_all_methods_on_the_same_seeds_and_conditions(tmp_path, data, fake_pipeline, shapes_evaluators):
    pipeline = fake_pipeline(data)
    comparison = compare(
        pipeline, data, SCALES, output_dir=tmp_path / "out", evaluation=FEW, evaluators=shapes_evaluators
    )
    assert [run.label for run in comparison] == LABELS  # cfg at scale 1 is "none", which is sampled once
    assert not comparison.left_out
    prompts = [[request.prompt for request in requests] for requests, _, _ in pipeline.calls]
    assert all(one == prompts[0] for one in prompts) and {seed for _, _, seed in pipeline.calls} == {0}
    by_label = {run.label: run for run in comparison}
    assert by_label["cfg 7.5"].result["accuracy/shape"].value > by_label["unconditional"].result["accuracy/shape"].value
    assert by_label["none"].result.evaluations_per_image == 50
    assert by_label["cfg+classifier 3, 4"].result.evaluations_per_image == 150
    assert by_label["classifier 4"].result.manifest["sampling"]["guidance_scale"] == 0

    table = (tmp_path / "out" / "comparison.txt").read_text()
    assert table == comparison.table() + "\n"
    lines = table.splitlines()
    assert len(lines) == 2 + len(LABELS) and len({len(line) for line in lines}) == 1
    assert "FD[trained-cnn:shapes:" in lines[0] and "FID" not in table and "%" in table
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert stored.pop("verdict").startswith(rank_comparison(comparison, SCALES).best.label)
    assert stored == json.loads(json.dumps(comparison.to_json()))
    assert stored["manifest"]["num_images"] == 40 and stored["warnings"]
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert image.size == (160 + 8 * 100, image.height) and image.height > 300
        sample = image.crop((160 + 100, image.height - 300, 160 + 196, image.height - 204)).resize((32, 32), 0)
    expected = next(pipeline.generate(*pipeline.calls[1][:2], seed=0))[0]  # the first sample of "none"
    pixels = torch.tensor(list(sample.get_flattened_data())).T.reshape(3, 32, 32) / 127.5 - 1
    torch.testing.assert_close(pixels, expected, rtol=0, atol=0.005)


def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path, data, fake_pipeline, shapes_evaluators):
    class Interrupted(fake_pipeline):
        def generate(self, *arguments, **options):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().generate(*arguments, **options)

    def run(pipeline, folder, **options):
        return compare(
            pipeline, data, SCALES, output_dir=folder, evaluation=FEW, evaluators=shapes_evaluators, **options
        )

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(data), tmp_path / "a", model="m")
    assert not (tmp_path / "a" / "comparison.json").exists()
    rest = fake_pipeline(data)
    resumed = run(rest, tmp_path / "a", model="m")
    assert len(rest.calls) == len(LABELS) - 2
    whole = run(fake_pipeline(data), tmp_path / "b", model="m")
    assert [run.result.figures for run in resumed] == [run.result.figures for run in whole]
    assert (tmp_path / "a" / "comparison.png").read_bytes() == (tmp_path / "b" / "comparison.png").read_bytes()
    idle = fake_pipeline(data)
    assert run(idle, tmp_path / "a", model="m") == resumed and not idle.calls
    with pytest.raises(UserError, match="made with another model"):
        run(idle, tmp_path / "a", model="other weights")


def test_the_output_folder_of_something_else_is_left_alone(tmp_path, data, fake_pipeline, shapes_evaluators):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        compare(fake_pipeline(data), data, output_dir=tmp_path, evaluation=FEW, evaluators=shapes_evaluators)
    with pytest.raises(UserError, match="is a file"):
        compare(
            fake_pipeline(data),
            data,
            output_dir=tmp_path / "thesis.txt",
            evaluation=FEW,
            evaluators=shapes_evaluators,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_methods_that_the_model_does_not_support(data, fake_pipeline):
    def planned(pipeline, methods=(), images=data, scale=1.0):
        config, sampling = ComparisonConfig(methods, (3.0,), (4.0,)), SamplingConfig(guidance_scale=scale)
        variants, left_out = plan_variants(config, pipeline, images, sampling)
        return [variant.label for variant in variants], left_out

    labels, left_out = planned(fake_pipeline(data, classifier=False))
    assert labels == ["unconditional", "none", "cfg 3"]
    assert left_out == dict.fromkeys(("classifier", "cfg+classifier"), "the model has no classifier")
    labels, left_out = planned(fake_pipeline(data, text=False, classes=True, dropout=0.0))
    assert labels == ["none", "classifier 4"]
    assert "without condition dropout" in left_out["cfg"]
    labels, left_out = planned(fake_pipeline(data, text=False, dropout=0.0))
    assert labels == ["none", "classifier 4"] and left_out["cfg"] == "the model is unconditional"

    with pytest.raises(UserError, match="`methods` cfg: the model was trained without condition dropout"):
        planned(fake_pipeline(data, dropout=0.0), ("cfg",))
    other = ShapesData("train", 32, size=(20, 1))
    other.class_names = ("cat", "dog")
    with pytest.raises(UserError, match="not those of the classifier"):
        planned(fake_pipeline(data), ("classifier",), other)
    with pytest.raises(UserError, match='did you mean "cfg"'):
        ComparisonConfig(methods=("cgf",))
    with pytest.raises(UserError, match="expected 0 or more"):
        ComparisonConfig(guidance_scales=(float("nan"),))
    with pytest.raises(UserError, match="give them as `guidance_scales`"):
        planned(fake_pipeline(data), scale=2.0)


def test_a_models_identity_is_that_of_its_parts(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(part)
    first = model_identity(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "state").write_text("x")
    assert model_identity(tmp_path) == first
    (tmp_path / "unet" / "config.json").write_text("other")
    assert model_identity(tmp_path) != first


def test_hostile_captions_are_inert_in_the_image(tmp_path, data, fake_pipeline, shapes_evaluators):
    class Hostile(ShapesData):
        def captions(self, index):
            return ("\x1b[2J\n<script>alert(1)</script>" + "W" * 3000 + f" {index}",)

    hostile = Hostile("validation", 32, size=(1, 120))
    config = ComparisonConfig(methods=("none",), rows=2)
    compare(
        fake_pipeline(hostile),
        hostile,
        config,
        output_dir=tmp_path / "o",
        evaluation=FEW,
        evaluators=shapes_evaluators,
    )
    with Image.open(tmp_path / "o" / "comparison.png") as image:
        assert image.width == 260
