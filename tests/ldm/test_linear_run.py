"""The linear autoencoder from the command line: fitted, sampled through, and refused where it cannot be."""

import json

import pytest
from PIL import Image

from autoencoders import Autoencoder

LINEAR = ["--bottleneck", "linear", "--latent-channels", "12", "--patch-size", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("linear") / "run"


def test_fit_diffusion_and_samples(ldm, models, folder, tmp_path):
    command = models.command("autoencoder", folder, *LINEAR)
    found = ldm(*command)
    assert found.code == 0 and "psnr" in found.out and "ssim" in found.out and "explained_variance" in found.out
    model = Autoencoder.from_pretrained(folder / "vae")
    assert (model.config.bottleneck, model.factor, model.latent_channels) == ("linear", 4, 12)
    measures = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    assert measures["psnr"] > 20 and 0.9 < measures["explained_variance"] < 1
    before = (folder / "vae" / "config.json").stat().st_mtime_ns
    assert ldm(*command).out == found.out  # finished: what was measured then
    assert (folder / "vae" / "config.json").stat().st_mtime_ns == before

    latents, run = tmp_path / "latents", tmp_path / "model"
    train = models.command("diffusion", run, "--autoencoder", folder, "--latents", latents, steps=2)
    assert ldm(*train).code == 0
    assert json.loads((run / "model_index.json").read_text())["vae"] == ["autoencoders", "LinearAutoencoder"]
    short = ["--device", "cpu", "--num-inference-steps", "2", "--num-images", "1", "--tile", "8", "--tile-overlap", "4"]
    assert ldm("sample", run, *short, "--output-dir", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "000000.png") as picture:
        assert picture.size == (16, 16)


def test_more_components_give_a_higher_psnr(ldm, models, tmp_path):
    psnr = []
    for latents in (2, 8, 40):
        run = tmp_path / str(latents)
        assert ldm(*models.command("autoencoder", run, *LINEAR, "--latent-channels", latents)).code == 0
        psnr.append(json.loads((run / "metrics.jsonl").read_text())["validation"]["psnr"])
    assert psnr == sorted(psnr)


def test_refusals(models, refused, tmp_path):
    def check(*flags, words):
        refused(models.command("autoencoder", tmp_path / "run", *LINEAR, *flags), *words)

    check("--latent-channels", 64, "--patch-size", 16, words=["--latent-channels 64", "64 images", "64 patches"])
    check("--latent-channels", 49, words=["latent_channels", "48 numbers", "49"])
    check("--patch-size", 5, words=["--image-size 16", "divisible", "5"])
    check("--patch-size", 65, words=["patch_size", "from 1 to 64"])
