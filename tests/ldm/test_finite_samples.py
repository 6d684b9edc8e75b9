"""Samples that are not finite are no images: the command stops in one line that names the step and the branch."""

import math

import pytest
import torch

from ldm.evaluation.conditions import EvalCondition
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.evaluation.measure import measure
from ldm.runtime.images import grid, to_pil
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.finite import NonFiniteSamplesError
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.single_pass import AutoencoderPrior

FEW = ("--device", "cpu", "--num-inference-steps", 3, "--num-images", 2)


def broken(pipeline, part):
    """With weights of one part that are no numbers, as no file could bring them: loading would refuse it."""
    module = pipeline.networks.unet.conv_out if part == "unet" else pipeline.networks.autoencoder.decoder
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(float("nan"))
    return pipeline


def test_what_is_not_finite_ends_the_command_and_leaves_nothing(models, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "_decode", lambda self, latents: torch.full((len(latents), 3, 16, 16), math.nan))
    words = ("not finite", "the decoder of the autoencoder", "look at the weights")
    refused(["sample", models.classes, *FEW, "--output-dir", tmp_path / "out"], *words)


def test_a_guidance_that_overflows_is_named_with_its_step_and_branches(models):
    pipeline = Pipeline.load(models.classes)
    pipeline.networks.unet.conv_out.weight.mul_(1e36)
    sampling = SamplingConfig(num_inference_steps=3, guidance_scale=1e6)
    with pytest.raises(NonFiniteSamplesError) as caught:
        list(pipeline.generate([Request(class_label=0)], sampling))
    assert "step 1 of 3 (t = 999), the guided prediction, made of the branches cond, uncond, each of" in str(
        caught.value
    )


def test_weights_that_are_not_finite_are_named_by_their_branch(models):
    requests = [Request(class_label=0), Request(class_label=1)]

    def message(pipeline, **sampling):
        with pytest.raises(NonFiniteSamplesError) as caught:
            list(pipeline.generate(requests, SamplingConfig(num_inference_steps=3, **sampling)))
        return str(caught.value)

    assert "step 1 of 3 (t = 999), the branch 'cond'" in message(broken(Pipeline.load(models.classes), "unet"))
    weak = Pipeline.load(models.classes, weak=models.classes)
    with torch.no_grad():
        next(weak.networks.guiding_model.unet.parameters()).fill_(float("inf"))
    assert "the branch 'weak'" in message(weak, guidance=("autoguidance(2)",))
    assert "the decoder of the autoencoder" in message(broken(Pipeline.load(models.classes), "autoencoder"))


def test_latents_that_are_not_finite_are_seen_behind_a_decoder_that_hides_them(models):
    pipeline = broken(Pipeline.load(models.classes), "unet")
    pipeline.networks.autoencoder.decode = lambda latents, **_: torch.zeros(len(latents), 3, 16, 16)
    with pytest.raises(NonFiniteSamplesError, match="the branch 'cond'"):
        list(pipeline.generate([Request(class_label=0)], SamplingConfig(num_inference_steps=2)))


def test_every_model_that_draws_images_is_checked(models):
    autoencoder = Pipeline.load(models.classes).networks.autoencoder
    prior = AutoencoderPrior(autoencoder, 16, torch.device("cpu"))
    prior.images = lambda generators: torch.full((len(generators), 3, 16, 16), float("inf"))
    with pytest.raises(NonFiniteSamplesError, match="the output of the network"):
        list(prior.generate([Request()]))


def test_an_evaluation_stops_before_it_measures(models):
    pipeline = broken(Pipeline.load(models.classes), "unet")
    conditions = [EvalCondition(Request(class_label=n)) for n in (0, 1)]
    config = EvaluationConfig(num_images=4, batch_size=1)
    with pytest.raises(NonFiniteSamplesError, match="step 1 of 2"):
        measure(pipeline, conditions, SamplingConfig(num_inference_steps=2), config, Evaluators(None, None), None)


@pytest.mark.parametrize("convert", [to_pil, lambda image: grid(image[None])])
def test_bytes_are_not_made_of_what_is_not_finite(convert):
    for value in (float("nan"), float("inf")):
        image = torch.zeros(3, 4, 4)
        image[0, 0, 0] = value
        with pytest.raises(FloatingPointError, match="not finite"):
            convert(image)


def test_a_training_goes_on_without_the_preview_that_is_not_finite(ldm, models, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Pipeline, "_decode", lambda self, latents: torch.full((len(latents), 3, 16, 16), math.inf))
    run = tmp_path / "run"
    flags = ("--text-encoder", "None", "--preview-images", 2, "--preview-steps", 2)
    assert ldm(*models.command("diffusion", run, *flags, steps=2)).code == 0
    assert "step 2: no preview: " in caplog.text
    assert not list(run.glob("samples/*.png")) and (run / "model_index.json").is_file()
