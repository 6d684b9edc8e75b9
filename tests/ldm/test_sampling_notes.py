"""What of a sampling's settings has no effect is said, and costs nothing."""

from dataclasses import replace

import pytest
import torch

from ldm.runtime.errors import UserError
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.pipeline import Pipeline

FAST = SamplingConfig(num_inference_steps=3)
PROMPT = "a large red circle on a blue background"
GUIDED = replace(FAST, guidance_scale=7.5)


@pytest.fixture(scope="module")
def text(models):
    return Pipeline.load(models.text, classifier=models.classifier)


@pytest.fixture(scope="module")
def classes(models):
    return Pipeline.load(models.classes)


def sampled(pipeline, requests, sampling):
    return torch.cat(list(pipeline.generate(requests, sampling)))


@pytest.mark.parametrize(
    ("requests", "sampling", "note"),
    [
        ([Request()] * 2, GUIDED, "`guidance_scale` 7.5 does nothing: the samples have no prompt"),
        ([Request(class_label=2)], GUIDED, "`guidance_scale` 7.5 does nothing: the samples have no prompt"),
        ([Request("red", "red")], GUIDED, "`guidance_scale` 7.5 does nothing: the samples have the same condition"),
        ([Request()], replace(FAST, guidance=("cfgpp(0.5)",)), "`guidance` cfgpp(0.5) does nothing"),
        ([Request(PROMPT)], replace(GUIDED, guidance_interval=(500.0, 600.0)), "at none of the steps, sigma / alpha"),
        ([Request("a red dragon")], FAST, "`prompt`: in no caption of the training: dragon"),
        ([Request(PROMPT, "a dragon")], GUIDED, "`negative_prompt`: in no caption of the training: dragon"),
        ([Request("red " * 40 + "blue")], FAST, "`prompt`: beyond the 32 tokens of this model's texts, without effect"),
        ([Request(PROMPT, "red " * 40)], GUIDED, "`negative_prompt`: beyond the 32 tokens"),
        ([Request(PROMPT), Request("a dragon")], FAST, "dragon (1 of 2 texts have such words)"),
        ([Request(PROMPT, "blue"), Request()], GUIDED, ""),
        ([Request(PROMPT)], GUIDED, ""),
        ([Request()], FAST, ""),
    ],
)
def test_what_has_no_effect_is_noted(text, requests, sampling, note):
    requests = [replace(r, class_label=r.class_label if sampling.classifier_scale else None) for r in requests]
    notes = text.notes(requests, sampling)
    assert len(notes) == bool(note) and (not note or note in notes[0]), notes


def test_a_branch_that_is_the_same_is_not_evaluated(text, classes):
    for pipeline in (text, classes):
        plain, cost = sampled(pipeline, [Request()] * 2, FAST), pipeline.evaluations
        for guidance in (GUIDED, *(replace(FAST, guidance=(name,)) for name in ("apg(4)", "cfg(3)", "cfg_zero(4)"))):
            guided = sampled(pipeline, [Request()] * 2, guidance)
            assert pipeline.evaluations == cost == 6
            assert (guided - plain).abs().max() < 1e-5
            assert torch.equal(guided, plain) or guidance.guidance == ("cfg_zero(4)",)
        sampled(pipeline, [Request(PROMPT) if pipeline is text else Request(class_label=1)] * 2, GUIDED)
        assert pipeline.evaluations == 12


@pytest.mark.parametrize(
    ("sampling", "note"),
    [
        (replace(FAST, guidance=("rescale(0.7)",)), "`guidance` rescale(0.7) changed nothing"),
        (
            replace(FAST, guidance=("energy(1e-5)",), energy=("colour([0.8, -0.6, -0.6])",)),
            "less than the rounding of the images",
        ),
        (replace(FAST, guidance=("energy(1)",), energy=("colour([0.8, -0.6, -0.6])",)), ""),
        (GUIDED, ""),
    ],
)
def test_a_guidance_without_effect_is_found_while_sampling(text, sampling, note):
    sampled(text, [Request(PROMPT)] * 2, sampling)
    (effect,) = text.effects
    assert note in effect.note and bool(note) == bool(effect.note), effect


def test_notes_are_logged_lines(models, ldm, caplog, tmp_path):
    flags = ["--num-images", 1, "--num-inference-steps", 2, "--guidance-scale", 7.5]
    found = ldm("sample", models.text, *flags, "--output-dir", tmp_path / "none")
    (note,) = [record.getMessage() for record in caplog.records if "note: " in record.getMessage()]
    assert note.startswith("note: `guidance_scale` 7.5 does nothing: the samples have no prompt")
    assert "1 image, 2 network evaluations" in found.out
    ldm("sample", models.text, *flags, "--prompt", "a \x1b[31m dragon", "--output-dir", tmp_path / "words")
    assert "note: `prompt`: in no caption of the training: 31m, dragon" in caplog.text


def test_a_prompt_in_the_place_of_the_model_is_recognised(models, refused, tmp_path):
    for words in (["a red star", models.text], [models.text, "a red star"], ["a red star"]):
        refused(["sample", *words, "--output-dir", tmp_path / "out"], "a red star", "use --prompt")
    with pytest.raises(UserError, match="no such folder"):
        Pipeline.load("nowhere")
