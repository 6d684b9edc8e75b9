"""Diffusion in pixels through the same commands: nothing is encoded, nothing else is different."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import Autoencoder
from ldm.data.shapes import ShapesData
from ldm.sampling.pipeline import Pipeline
from ldm.training.randomness import BatchPlan, BatchShard
from ldm.training.tasks.latents import LatentSource, load_autoencoder
from ldm.training.tasks.settings import DiffusionRun

PIXELS = ["--autoencoder", "identity", "--latents", "", "--text-encoder", "None"]


@pytest.fixture(scope="module")
def pixels(models, tmp_path_factory):
    """A class-conditional model of 16 px shapes, and a classifier of its noisy pixels."""
    from ldm.cli.main import main

    root = tmp_path_factory.mktemp("pixels")
    assert main(models.command("diffusion", root / "model", *PIXELS, steps=20)) == 0
    flags = ["--autoencoder", root / "model", "--latents", ""]
    assert main(models.command("classifier", root / "classifier", *flags, steps=5)) == 0
    return root


def test_the_folder_says_that_its_latents_are_pixels(pixels):
    index = json.loads((pixels / "model" / "model_index.json").read_text())
    assert index["vae"] == ["autoencoders", "IdentityAutoencoder"]
    assert not (pixels / "model" / "latents").exists(), "no cache of pixels"
    pipeline = Pipeline.load(pixels / "model")
    assert pipeline.image_size == pipeline.networks.latent_size == 16 and pipeline.networks.unet.config.in_channels == 3
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(pipeline.encode(images), images) and torch.equal(pipeline.decode(images), images)
    assert isinstance(pipeline.networks.autoencoder, Autoencoder)
    fresh, folder = load_autoencoder("identity", torch.device("cpu"))
    assert folder is None and fresh.fingerprint() == pipeline.networks.autoencoder.fingerprint()


def test_batches_are_the_images_themselves_in_the_plans_order():
    data = ShapesData("train", 16, size=(32, 4))
    identity, _ = load_autoencoder("identity", torch.device("cpu"))
    source = LatentSource(DiffusionRun(), identity, data, torch.device("cpu"))
    plan = BatchPlan(len(data), 0, BatchShard(8), 0, 2)
    for batch, keys in zip(source.batches(plan), plan, strict=True):
        assert batch.keys == keys and batch.std is None
        for row, (index, seed) in enumerate(keys):
            example = data[index, seed]
            assert torch.equal(batch.mean[row], example.image) and batch.labels[row] == example.label


def test_every_command_takes_a_model_of_pixels(pixels, ldm, tmp_path):
    short = ["--num-inference-steps", 3, "--device", "cpu"]
    few = [*short, "--num-images", 6]
    out = tmp_path / "out"
    guided = ["--classifier", pixels / "classifier", "--classifier-scale", 1, "--guidance-scale", 2]
    found = ldm("sample", pixels / "model", *few, *guided, "--sampler", "ddpm", "--output-dir", out)
    assert found.code == 0 and "6 images, 54 network evaluations" in found.out, found.err
    with Image.open(out / "000000.png") as picture:
        assert np.array(picture).shape == (16, 16, 3)
    edited = ["--init-image", out / "000000.png", "--strength", 0.5]
    assert ldm("sample", pixels / "model", *few, *edited, "--output-dir", tmp_path / "b").code == 0
    found = ldm("evaluate", pixels / "model", *few, "--metrics", "kid", "--num-reference", 8, "--no-judge")
    assert found.code == 0 and "trained-cnn:shapes" in found.out, found.err


def test_what_pixels_need_not_is_refused(models, refused, tmp_path):
    command = models.command("diffusion", tmp_path / "run", "--autoencoder", "identity", "--latents", tmp_path / "l")
    refused(command, "--latents", "takes no latent cache")
    refused(["encode", "--autoencoder", "identity", "--output-dir", tmp_path / "l"], "need no cache")
    refused(models.command("diffusion", tmp_path / "run", "--autoencoder", "identit"), "or identity")
