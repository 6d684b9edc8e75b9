"""Pictures from a VAE's own prior, through the command line."""

import json

import pytest
import torch
from PIL import Image

from ldm.sampling.config import Request
from ldm.sampling.image_model import ImageModel
from ldm.sampling.loading import load_model


@pytest.fixture(scope="module")
def vaes(models):
    from ldm.cli.main import main

    def train(name):
        folder = models.root / f"direct-{name}"
        flags = ["--bottleneck", name, "--kl-weight", 1.0]
        assert main(models.command("autoencoder", folder, *flags, steps=2)) == 0
        return folder

    return {name: train(name) for name in ("kl", "vq")}


def sample(folder, output, *more):
    return ["sample", folder, "--device", "cpu", "--output-dir", output, *more]


def test_a_vae_draws_pictures_each_from_its_own_number(vaes, ldm, tmp_path):
    outcome = ldm(*sample(vaes["kl"], tmp_path / "a", "--num-images", 5, "--batch-size", 2))
    assert outcome.code == 0 and "5 images" in outcome.out, outcome.err
    outcome = ldm(*sample(vaes["kl"], tmp_path / "b", "--num-images", 1, "--first-index", 3))
    assert outcome.code == 0, outcome.err
    png = tmp_path / "a" / "000003.png"
    with Image.open(png) as image:
        assert image.size == (16, 16)
    assert (tmp_path / "b" / "000000.png").read_bytes() == png.read_bytes()
    outcome = ldm(*sample(vaes["kl"], tmp_path / "c", "--recreate", png))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "c" / "000000.png").read_bytes() == png.read_bytes()
    metadata = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert (metadata["seed"], metadata["first_index"]) == (0, 0)
    model = load_model(vaes["kl"])
    assert isinstance(model, ImageModel) and model.image_size == 16
    whole = list(model.generate([Request()] * 3, batch_size=2))
    assert [len(images) for images in whole] == [2, 1]
    for rank in range(2):
        (own,) = model.generate([Request()] * 3, batch_size=2, shard=(rank, 2))
        assert torch.equal(own, whole[rank])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guidance-scale", 3], ["--guidance-scale", "without diffusion"]),
        (["--tile", 64], ["--tile", "without diffusion"]),
        (["--strength", 0.5], ["--strength"]),
        (["--weak", "x"], ["--weak", "without diffusion"]),
        (["--prompt", "a circle"], ["--prompt", "no text"]),
        (["--class-label", "circle"], ["--class-label", "no classes"]),
    ],
)
def test_what_only_diffusion_obeys_is_refused(flags, words, vaes, refused, tmp_path):
    refused(sample(vaes["kl"], tmp_path / "x", *flags), *words)


def test_an_autoencoder_without_a_prior_is_refused(vaes, refused, tmp_path):
    refused(sample(vaes["vq"], tmp_path / "x"), "vq", "without a prior", "ldm train prior")
