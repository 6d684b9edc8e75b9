"""Every bottleneck through the command line: trained, encoded, diffused, sampled."""

import json

import pytest

from autoencoders import Autoencoder, AutoencoderConfig, bottlenecks
from ldm.runtime.settings import read_settings, to_yaml
from ldm.sampling.pipeline import Pipeline
from ldm.training.tasks.settings import AutoencoderRun

OPTIONS = {
    "vq": ["--num-codes", 16],
    "gumbel": ["--num-codes", 16, "--temperature-steps", 2],
    "vqvae2": ["--num-codes", 16, "--code-width", 8, "--codebook-init", "data"],
    "nvae": ["--group-width", 8, "--groups-per-level", 1],
}
RATELESS = {"none", "linear"}


VIT = ["--coder", "vit", "--patch-size", 4, "--vit-width", 16, "--vit-layers", 1, "--vit-heads", 2]


def test_a_transformer_coder_from_training_to_pictures(models, ldm, refused, tmp_path):
    vae, model = tmp_path / "vae", tmp_path / "model"
    found = ldm(*models.command("autoencoder", vae, *VIT, "--gradient-checkpointing", steps=2))
    assert found.code == 0, found.err
    own = ["--autoencoder", vae, "--latents", tmp_path / "latents"]
    assert ldm(*models.command("diffusion", model, *own, steps=2)).code == 0
    assert json.loads((model / "model_index.json").read_text())["vae"] == ["autoencoders", "Autoencoder"]
    drawn = ["sample", model, "--num-images", 1, "--num-inference-steps", 2, "--device", "cpu"]
    found = ldm(*drawn, "--slicing", "--output-dir", tmp_path / "x")
    assert found.code == 0, found.err
    refused([*drawn, "--tile", 16, "--output-dir", tmp_path / "y"], "--tile", "vit")


def test_a_hierarchical_vae_draws_from_its_own_prior(models, ldm, tmp_path):
    own = ["--bottleneck", "nvae", *OPTIONS["nvae"], "--sample-size", 16]
    assert ldm(*models.command("autoencoder", tmp_path / "vae", *own, steps=2)).code == 0
    for name, flags in {
        "a": ["--num-images", 3, "--batch-size", 2],
        "b": ["--num-images", 1, "--first-index", 2],
    }.items():
        found = ldm("sample", tmp_path / "vae", "--device", "cpu", *flags, "--output-dir", tmp_path / name)
        assert found.code == 0, found.err
    pictures = [(tmp_path / place).read_bytes() for place in ("a/000000.png", "a/000002.png", "b/000000.png")]
    assert pictures[0] != pictures[1] == pictures[2]


@pytest.mark.parametrize("name", [name for name in bottlenecks(plugins=False) if name != "identity"])
def test_every_bottleneck_from_training_to_pictures(name, models, ldm, tmp_path):
    vae, model = tmp_path / "vae", tmp_path / "model"
    damage = [] if name == "linear" else ["--mask-probability", 0.2, "--noise-std", 0.1]
    flags = ["--bottleneck", name, *OPTIONS.get(name, []), *damage]
    found = ldm(*models.command("autoencoder", vae, *flags, steps=3))
    assert found.code == 0, found.err
    steps = [json.loads(line) for line in (vae / "metrics.jsonl").read_text().splitlines()]
    assert ("bits_per_pixel" in steps[0]) == (name not in RATELESS)
    if name == "gumbel":
        assert [round(step["temperature"], 5) for step in steps if "loss" in step] == [1.0, 0.53125, 0.0625]
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
    assert Pipeline.load(model).networks.autoencoder.config.bottleneck == name


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bottleneck", "linear", "--noise-std", 0.1], ["--noise-std", "linear", "closed form"]),
        (["--mask-probability", 2], ["mask_probability", "from 0 to 1", "2"]),
        (["--mask-patch", 0], ["mask_patch", "whole number"]),
        (["--bottleneck", "bn", "--mean-scale", 0], ["mean_scale", "above 0"]),
        (["--bottleneck", "vmf", "--kappa", 0], ["kappa", "above 0", "got 0"]),
        (["--bottleneck", "vmf", "--kappa", -3], ["kappa", "above 0", "-3"]),
        (["--bottleneck", "fsq", "--levels", 8, 1, 5, 5], ["levels", "from 3", "1"]),
        (["--bottleneck", "fsq", "--levels", 8, 8], ["levels", "latent_channels = 4", "got 2"]),
        (["--bottleneck", "lfq", "--entropy-temperature", 0], ["entropy_temperature", "above 0"]),
        (["--bottleneck", "gumbel", "--temperature", 0], ["temperature", "above 0", "got 0"]),
        (["--bottleneck", "gumbel", "--temperature-end", -1], ["temperature_end", "above 0"]),
        (["--bottleneck", "vmf", "--latent-channels", 1], ["latent_channels", "2 or more"]),
        (["--bottleneck", "vqvae2", "--code-levels", 1], ["code_levels", "from 2 to 5", "1"]),
        (["--bottleneck", "vqvae2", "--code-width", 30], ["code_width", "multiple of norm_num_groups 4", "30"]),
        (["--bottleneck", "vqvae2", "--code-levels", 5], ["--image-size 16", "not divisible", "32"]),
        (
            ["--bottleneck", "vqvae2", "--codebook-init", "data", "--num-codes", 4096],
            ["--num-codes 4096", "1,024 latents"],
        ),
        (["--bottleneck", "vqvae2", "--code-dropout", 2], ["code_dropout", "from 0 to 1"]),
        (["--bottleneck", "nvae", "--group-levels", 6], ["group_levels", "from 1 to 5", "6"]),
        (["--bottleneck", "nvae", "--groups-per-level", 0], ["groups_per_level", "from 1"]),
        (["--bottleneck", "nvae", "--free-bits", -1], ["free_bits", "from 0"]),
        (["--coder", "vit", "--vit-heads", 5], ["vit_heads", "divisor of vit_width 192", "5"]),
        (["--coder", "vit", "--patch-size", 5], ["--image-size 16", "not divisible", "5"]),
        (["--coder", "vit", "--bottleneck", "linear"], ["vit", "linear", "no encoder"]),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(flags, words, models, refused, tmp_path):
    refused(models.command("autoencoder", tmp_path / "run", *flags), *words)


def test_the_settings_of_a_bottleneck_stand_under_its_name_in_yaml(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("autoencoder: {bottleneck: fsq, latent_channels: 3, fsq: {levels: [7, 5, 3]}, vmf: {kappa: 2}}")
    settings = read_settings(AutoencoderRun, path)
    assert settings.autoencoder.fsq.levels == (7, 5, 3)
    path.write_text(to_yaml(settings))
    assert read_settings(AutoencoderRun, path) == settings


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"settings": {"levels": [8, 5, 5, 1]}}, "levels: expected whole numbers"),
        ({"settings": {"levels": [8, 5, 5, 5], "kappa": 1}}, "settings: expected an object with levels"),
        ({"settings": "none"}, "settings: expected an object with levels"),
        ({"bottleneck": "os.system"}, "bottleneck: expected one of none, bn, vmf, nvae, fsq, lfq, gumbel"),
        ({"bottleneck": "none"}, "settings: expected an empty object"),
        ({"bottleneck": "kl", "settings": {}}, "bottleneck: expected one of none"),
        ({"bottleneck": ["fsq"]}, "bottleneck: expected one of none"),
        ({"bottleneck": "lfq", "settings": {"commitment_beta": -1}}, "commitment_beta"),
        ({"bottleneck": "gumbel", "settings": {"num_codes": 10**12}}, "num_codes"),
        ({"colour": 1}, "unknown keys 'colour' for Autoencoder"),
    ],
)
def test_a_damaged_folder_of_our_own_class_is_refused_in_one_line(entries, message, tmp_path):
    Autoencoder(AutoencoderConfig(bottleneck="fsq", block_out_channels=(8,))).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    with pytest.raises(ValueError, match=message) as refusal:
        Autoencoder.from_pretrained(tmp_path)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)
