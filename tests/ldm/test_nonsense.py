"""What makes no sense is refused in one line before the first step, and nothing is made."""

import json
import shutil

import pytest

SECOND_ORDER = ("heun", "dpm_2", "dpmpp_2m", "unipc")


def without_signal(folder, target):
    """The model with a noise schedule that ends in pure noise: sigma / alpha is infinite there."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("checkpoint-*", "latents", "samples"))
    path = target / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    (target / "model_manifest.json").unlink()  # it is edited on purpose
    return target


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guidance-scale", "-1"], ["-1", "not negative"]),
        (["--guidance-scale", "nan"], ["nan"]),
        (["--guidance-scale", "inf"], ["inf"]),
        (["--classifier-scale", "-2", "--class-label", "star"], ["-2", "not negative"]),
        (["--classifier-scale", "nan", "--class-label", "star"], ["nan"]),
        (["--guidance", "cfg(-1)"], ["-1", "not negative"]),
        (["--guidance-scale", "3", "--guidance-interval", "5", "0.3"], ["low < high"]),
        (["--guidance-scale", "3", "--guidance-interval", "nan", "1"], ["interval"]),
        (["--guidance", "cfg(3, interval=[5, 0.3])"], ["low < high"]),
        (["--guidance", "cfg(3, interval='all')"], ["interval"]),
        (["--guidance", "cfg(3, against='dog')"], ["'dog'", "uncond"]),
        (["--guidance", "cfg(3, curve='steep')"], ["curve", "linear"]),
        (["--num-inference-steps", "0"], ["at least 1", "got 0"]),
        (["--num-inference-steps", "-5"], ["at least 1", "got -5"]),
        (["--num-inference-steps", "1001"], ["1001 steps", "1000"]),
        (["--guidance", "classifier(2)"], ["no classifier", "--classifier"]),
        (["--guidance", "classifier(2, 'other')"], ["'other'"]),
        (["--guidance", "energy(2)"], ["'energy'"]),
        (["--guidance", "theirs(2)"], ["no guidance 'theirs'"]),
        (["--guidance", "cfg('much')"], ["'much'"]),
        (["--sampler", "ddim(eta=3)"], ["eta = 3", "eta <= 1"]),
        (["--sampler", "ddim(eta='x')"], ["eta", "'x'"]),
        (["--sampler", "ddpm('learned')"], ["learned", "variance_fraction"]),
        (["--sampler", "rk45(rtol=0, atol=0)"], ["positive tolerance"]),
    ],
)
def test_flags(models, refused, tmp_path, flags, words):
    refused(["sample", models.text, "--device", "cpu", *flags, "--output-dir", tmp_path / "out"], *words)


@pytest.mark.parametrize("sampler", SECOND_ORDER)
def test_an_epsilon_model_whose_schedule_ends_in_pure_noise(models, refused, tmp_path, sampler):
    model = without_signal(models.text, tmp_path / "model")
    flags = ["--device", "cpu", "--sampler", sampler, "--output-dir", tmp_path / "out"]
    refused(["sample", model, *flags], f"--sampler {sampler}", "alpha = 0")


def test_spacings_that_a_schedule_cannot_take(models, refused, tmp_path):
    model = without_signal(models.text, tmp_path / "model")
    for spacing in ("karras", "log_snr"):
        flags = ["--device", "cpu", "--spacing", spacing, "--sampler", "dpmpp_2m", "--output-dir", tmp_path / "out"]
        refused(["sample", model, *flags], "--spacing", "ends in pure noise")
    metrics = ["evaluate", model, "--device", "cpu", "--metrics", "bits_per_dim"]
    refused(metrics, "bits_per_dim", "ends in pure noise")
