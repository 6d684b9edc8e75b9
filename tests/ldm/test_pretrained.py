"""DINOv2 and CLIP features against transformers' own processors and models, on tiny models with random weights."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from ldm.conditioning.tokenizer import train_tokenizer
from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.evaluators import prepare_evaluators, prepare_extractor
from ldm.evaluation.features.extractors import figure_name
from ldm.evaluation.features.pretrained import ClipScorer, PretrainedExtractor, pretrained_extractor
from ldm.runtime.errors import UserError
from ldm.runtime.images import to_pil

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**TINY, "image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(60, 40))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**VISION)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("models") / "tiny clip"
    tokenizer = train_tokenizer([data.captions(i)[0] for i in range(len(data))], 600)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(**TINY, vocab_size=len(tokenizer), max_position_embeddings=24, **marks)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = CLIPConfig(
            text_config=text.to_dict(), vision_config=CLIPVisionConfig(**VISION).to_dict(), projection_dim=12
        )
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def images(height, width):
    """Smooth pictures, not noise: resizing noise tells more about rounding than about the resize."""
    coarse = torch.rand(3, 3, 6, 5, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("size", [(32, 32), (20, 20), (64, 48), (45, 80)])
def test_dinov2_features_are_those_of_transformers(dinov2, size):
    extractor, x = PretrainedExtractor(dinov2, "tiny-dino"), images(*size)
    pictures = [to_pil(each) for each in x]
    prepared = BitImageProcessor.from_pretrained(dinov2)(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(extractor.prepare(x), prepared, atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2)(pixel_values=prepared).pooler_output
    assert extractor.dim == 16
    torch.testing.assert_close(extractor(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_clip_features_and_scores_are_those_of_transformers(clip, size, data):
    extractor, x = PretrainedExtractor(clip, "tiny clip"), images(*size)
    captions = [data.captions(i)[0] for i in range(3)]
    scorer = ClipScorer(extractor)
    found = scorer(x, [*captions[:2], captions[2] + " and more" * 50])  # cut to the context
    assert extractor.dim == 12 and found.shape == (3,)
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(clip)(captions[:2], padding=True, return_tensors="pt")
    prepared = CLIPImageProcessor.from_pretrained(clip)([to_pil(each) for each in x], return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(clip)(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **prepared
        )
    pictures, texts = out.image_embeds, out.text_embeds  # of unit length
    cosine = (pictures[:2] * texts).sum(1)
    assert found[:2].numpy() == pytest.approx(100 * np.clip(cosine.numpy(), 0, None), abs=1e-3)
    unit = extractor(x) / extractor(x).norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, pictures, atol=1e-5, rtol=1e-4)


def test_figures_are_named_after_the_model_and_its_weights(dinov2, clip, data):
    config = EvaluationConfig(extractor=str(dinov2), judge=False)
    extractor = prepare_extractor(data, config)
    assert extractor.name.startswith("dinov2:tiny-dino:") and figure_name("fid", extractor) == f"FD[{extractor.name}]"
    assert extractor.preprocessing == "8 bits, bicubic antialiased resize, shorter side to 36, centre 28 x 28"
    assert PretrainedExtractor(clip, "tiny clip").name.startswith("clip:tiny-clip:")
    before = torch.get_rng_state()
    PretrainedExtractor(dinov2, "tiny-dino")
    assert torch.equal(before, torch.get_rng_state())


def test_a_text_model_is_scored_by_clip(clip, data, fake_pipeline):
    config = EvaluationConfig(
        metrics=("fid", "clip_score"), num_images=24, batch_size=9, extractor=str(clip), judge=False, bootstrap=20
    )
    train = ShapesData("train", 32, size=(60, 40))
    found = evaluate_model(fake_pipeline(data), data, None, config, train_data=train)
    evaluators = prepare_evaluators(data, config)
    assert evaluators.clip.extractor is evaluators.extractor, "one model, loaded once"
    figure, floor = found["clip_score"], {figure.metric: figure for figure in found.baseline}["clip_score"]
    assert figure.name == f"CLIP score[{evaluators.clip.name}]" and figure.higher_is_better
    assert figure.interval[0] < figure.value < figure.interval[1] and figure.standard_error > 0
    assert 0 <= floor.value <= 100 and "100 max(cos, 0)" in found.manifest["clip_score"]
    with pytest.raises(UserError, match="`metrics` clip_score: needs captions"):
        evaluate_model(fake_pipeline(data, text=False, classes=True), data, None, config)


def test_an_absent_clip_is_told_of_before_anything_is_trained(data, monkeypatch, tmp_path):
    monkeypatch.setattr("ldm.evaluation.evaluators.trained_extractor", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("ldm.evaluation.evaluators.trained_judge", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = EvaluationConfig(metrics=("fid", "clip_score"), extractor="trained", clip_model="nobody/nothing")
    with pytest.raises(
        UserError, match=r"`clip_model` nobody/nothing: .* give a local folder, or `download_extractor`"
    ):
        prepare_evaluators(data, config)


def test_what_is_not_such_a_model_is_refused(dinov2, clip, tmp_path, data, monkeypatch):
    with pytest.raises(UserError, match="`clip_model`: expected a CLIP, got dinov2:"):
        ClipScorer(PretrainedExtractor(dinov2, "tiny"))
    with pytest.raises(UserError, match=r"`extractor`: unknown 'clop'.*did you mean .clip"):
        EvaluationConfig(extractor="clop")
    with pytest.raises(UserError, match=r"`extractor` a/b: a/b is not in the hub's cache; .*`download_extractor`"):
        pretrained_extractor("a/b", "`extractor`")
    with pytest.raises(UserError, match=r"`extractor` ./no: neither a folder nor ORG/NAME"):
        prepare_extractor(data, EvaluationConfig(extractor="./no"))

    def copy(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        for path in dinov2.iterdir():
            content = changes.get(path.name, path.read_bytes())
            if content is not None:
                (folder / path.name).write_bytes(content)
        return folder

    config = json.loads((dinov2 / "config.json").read_text())
    bert = json.dumps({**config, "model_type": "bert"}).encode()
    deeper = json.dumps({**config, "num_hidden_layers": 3}).encode()
    half = (dinov2 / "model.safetensors").read_bytes()[:3000]
    cases = {
        "bert": ({"config.json": bert}, "expected a model of type dinov2 or clip, found 'bert'"),
        "deeper": ({"config.json": deeper}, "weights are missing"),
        "weightless": ({"model.safetensors": None}, "safetensors only"),
        "half": ({"model.safetensors": half}, "cannot read its weights"),
        "unprepared": ({"preprocessor_config.json": None}, "no such file"),
        "strange": ({"preprocessor_config.json": b'{"size": {"longest_edge": 3}}'}, "not known here"),
        "huge": ({"preprocessor_config.json": b'{"size": 100000}'}, "not known here"),
    }
    for name, (changes, message) in cases.items():
        with pytest.raises(UserError, match=message):
            pretrained_extractor(str(copy(name, **changes)), "`extractor`")
