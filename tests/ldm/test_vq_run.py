"""The kinds of vector quantisation from the command line, with codes that begin as latents of the data."""

import json

import pytest

from autoencoders import Autoencoder

VQ = ["--num-codes", "64", "--num-quantizers", "2", "--codebook-init", "data"]


@pytest.mark.parametrize("bottleneck", ["vq", "cosine_vq", "product_vq", "residual_vq"])
def test_train_diffusion_and_sample(ldm, models, tmp_path, bottleneck):
    run, out = tmp_path / "model", tmp_path / "out"
    command = models.command("autoencoder", tmp_path / "ae", "--bottleneck", bottleneck, *VQ)
    assert ldm(*command).code == 0
    lines = [json.loads(line) for line in (tmp_path / "ae" / "metrics.jsonl").read_text().splitlines()]
    assert 1 < lines[0]["perplexity"] <= lines[0]["used_codes"] <= 64
    assert lines[0]["used_codes"] > 4  # codes near zero are hardly told apart at first; these are of the data
    model = Autoencoder.from_pretrained(tmp_path / "ae" / "vae")
    assert (model.config.bottleneck, model.config.codebook_init) == (bottleneck, "data")
    train = models.command("diffusion", run, "--autoencoder", tmp_path / "ae", "--latents", tmp_path / "lat", steps=2)
    assert ldm(*train).code == 0
    short = ["--device", "cpu", "--num-inference-steps", "2", "--num-images", "1", "--output-dir", out]
    assert ldm("sample", run, *short).code == 0 and (out / "000000.png").is_file()


def test_a_codebook_larger_than_its_sample_is_refused(models, refused, tmp_path):
    flags = ["--bottleneck", "vq", "--codebook-init", "data", "--num-codes", "4097"]
    words = ["--num-codes 4097", "larger than the sample", "4,096 latents of 64 images"]
    refused(models.command("autoencoder", tmp_path / "run", *flags), *words)
