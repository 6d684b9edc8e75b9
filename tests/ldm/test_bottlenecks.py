"""Every bottleneck through the command line: trained, encoded, diffused, sampled."""

import json

import pytest

from autoencoders import BOTTLENECKS
from ldm.pipeline import Pipeline

OPTIONS = {"vq": ["--num-codes", 16]}
RATELESS = {"none"}


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if name != "identity"])
def test_every_bottleneck_from_training_to_pictures(name, models, ldm, tmp_path):
    vae, model = tmp_path / "vae", tmp_path / "model"
    flags = ["--bottleneck", name, *OPTIONS.get(name, []), "--mask-probability", 0.2, "--noise-std", 0.1]
    found = ldm(*models.command("autoencoder", vae, *flags, steps=3))
    assert found.code == 0, found.err
    steps = [json.loads(line) for line in (vae / "metrics.jsonl").read_text().splitlines()]
    assert ("bits_per_pixel" in steps[0]) == (name not in RATELESS)
    own = ["--autoencoder", vae, "--latents", tmp_path / "latents"]
    found = ldm(*models.command("diffusion", model, *own, steps=2))
    assert found.code == 0, found.err
    index = json.loads((model / "model_index.json").read_text())
    config = json.loads((model / "vae" / "config.json").read_text())
    assert index["vae"][1] == config["_class_name"]
    found = ldm(
        "sample",
        model,
        "--num-images",
        1,
        "--num-inference-steps",
        2,
        "--device",
        "cpu",
        "--output-dir",
        tmp_path / "x",
    )
    assert found.code == 0, found.err
    assert (tmp_path / "x" / "000000.png").is_file()
    assert Pipeline.load(model).autoencoder.config.bottleneck == name


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mask-probability", 2], ["mask_probability", "from 0 to 1", "2"]),
        (["--mask-patch", 0], ["mask_patch", "whole number"]),
        (["--bottleneck", "bn", "--mean-scale", 0], ["mean_scale", "above 0"]),
        (["--bottleneck", "vmf", "--kappa", 0], ["kappa", "above 0", "got 0"]),
        (["--bottleneck", "vmf", "--kappa", -3], ["kappa", "above 0", "-3"]),
        (["--bottleneck", "fsq", "--levels", 8, 1, 5, 5], ["levels", "from 3", "1"]),
        (["--bottleneck", "fsq", "--levels", 8, 8], ["levels", "latent_channels = 4", "got 2"]),
        (["--bottleneck", "lfq", "--entropy-temperature", 0], ["entropy_temperature", "above 0"]),
        (["--bottleneck", "vmf", "--latent-channels", 1], ["latent_channels", "2 or more"]),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(flags, words, models, refused, tmp_path):
    refused(models.command("autoencoder", tmp_path / "run", *flags), *words)
