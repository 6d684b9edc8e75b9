"""`ldm evaluate RUN` and `ldm compare autoencoders` over tiny runs of the command line."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import Autoencoder, AutoencoderConfig, LossConfig
from ldm.data.shapes import ShapesData
from ldm.evaluation.autoencoder.base import AutoencoderEvaluation, AutoencoderEvaluators
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.evaluation.autoencoder.evaluate import evaluate_autoencoder
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.registry import autoencoder_metrics
from ldm.runtime.errors import UserError

RUNS = {
    "kl": ["--kl-weight", "1e-2"],
    "vq": ["--num-codes", "16"],
    "none": [],
    "linear": ["--patch-size", "2", "--latent-channels", "4"],
    "fsq": ["--levels", "3", "3", "3", "3"],
    "product_vq": ["--num-codes", "8", "--num-quantizers", "2"],
}
TRAINED = ["--device", "cpu", "--extractor", "trained"]


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    from ldm.cli.main import main

    root = tmp_path_factory.mktemp("runs")
    for name, flags in RUNS.items():
        command = models.command("autoencoder", root / name, "--bottleneck", name, "--validation-images", 32, *flags)
        assert main(command) == 0
    return root


@pytest.fixture
def figures(ldm, tmp_path):
    """`figures(run, *flags)`: what `ldm evaluate` wrote, by metric, and all of it."""

    def measure(run, *flags):
        out = tmp_path / "figures.json"
        found = ldm("evaluate", run, *TRAINED, "--output", out, *flags)
        assert found.code == 0, found.err
        content = json.loads(out.read_text())
        return {each["metric"]: each for each in content["figures"]}, content, found.out

    return measure


def test_each_family_has_its_measures(runs, figures):
    expected = {
        "kl": {"psnr", "ssim", "rfid", "rate", "active_units", "aggregate_posterior/kl", "aggregate_posterior/mmd"},
        "vq": {"psnr", "ssim", "rfid", "rate", "codebook/used", "codebook/perplexity"},
        "linear": {"psnr", "ssim", "rfid"},
    }
    for name, metrics in expected.items():
        found, content, text = figures(runs / name)
        assert set(found) == metrics
        assert found["rfid"]["name"].startswith("rFD[trained-cnn:shapes") and "FID" not in text
        assert content["manifest"]["num_images"] == 32 and content["manifest"]["image_size"] == 16, "of the run"
        validated = json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
        assert found["psnr"]["value"] == pytest.approx(validated["psnr"], abs=1e-4)
        assert found["psnr"]["standard_error"] > 0 and found["rfid"]["standard_error"] > 0


def test_the_rate_is_that_of_the_codes_and_of_the_posterior(runs, figures):
    data = ShapesData("validation", 16, size=(64, 32))
    images = torch.stack([data[k].image for k in range(32)])
    with torch.no_grad():
        codes = Autoencoder.from_pretrained(runs / "product_vq" / "vae").codes(images)[0].numpy()  # (32, 8, 16)
        posterior = Autoencoder.from_pretrained(runs / "kl" / "vae")
        encoding = posterior.encode(images)
    bits, used = 0.0, 0
    for part in range(2):
        _, counts = np.unique(codes[..., part::2], return_counts=True)
        bits -= (counts / counts.sum() * np.log2(counts / counts.sum())).sum()
        used += len(counts)
    found, _, _ = figures(runs / "product_vq", "--metrics", "rate", "codebook")
    assert found["rate"]["value"] == pytest.approx(bits * 64 / 256, rel=1e-6)
    assert found["codebook/used"]["value"] == used / 16
    law = torch.distributions.Normal(encoding.mean, encoding.std)
    prior = torch.distributions.Normal(posterior.prior_mean[:, None, None], posterior.prior_std[:, None, None])
    nats = torch.distributions.kl_divergence(law, prior).sum((1, 2, 3)).mean()
    found, _, _ = figures(runs / "kl", "--metrics", "rate")
    assert found["rate"]["value"] == pytest.approx(float(nats) / np.log(2) / 256, rel=1e-4)


def test_likelihood_with_the_scale_that_the_loss_implies(runs, figures):
    flags = ["--metrics", "iwae", "--iwae-images", "6", "--iwae-samples", "1", "4", "16"]
    found, content, text = figures(runs / "kl", *flags)
    facts = content["manifest"]["iwae"]
    assert (facts["likelihood"], facts["likelihood_scale"]) == ("laplace", 0.01)
    assert "likelihood_scale 0.01" in text
    values = [found[f"iwae/{k}"]["value"] for k in (1, 4, 16)]
    assert values == sorted(values)
    for k in (1, 4, 16):
        assert found[f"iwae/{k}/bits"]["value"] == pytest.approx(-found[f"iwae/{k}"]["value"] / 768 / np.log(2))
    again, content, _ = figures(runs / "kl", *flags, "--likelihood-scale", "0.5")
    assert content["manifest"]["iwae"]["likelihood_scale"] == 0.5
    assert again["iwae/1"]["value"] > found["iwae/1"]["value"] + 1000, "errors are far wider than 0.01"


def test_what_changes_nothing_is_perfect():
    data = ShapesData("validation", 16, size=(64, 32))

    class Means(Extractor):
        name, dim, preprocessing = "means", 3, "none"

        def __call__(self, images):
            return images.mean((2, 3))

    config = AutoencoderEvaluationConfig(metrics=("ssim", "rfid"), num_images=20, batch_size=7)
    found = evaluate_autoencoder(
        Autoencoder(AutoencoderConfig(bottleneck="identity")), data, config, evaluators=AutoencoderEvaluators(Means())
    )
    assert found["ssim"].value == pytest.approx(1) and found["rfid"].value == pytest.approx(0, abs=1e-9)
    assert found["rfid"].name == "rFD[means]" and found.manifest["num_images"] == 20
    with pytest.raises(UserError, match="4 or more"):
        evaluate_autoencoder(Autoencoder(AutoencoderConfig()), ShapesData("validation", 16, size=(8, 3)), config)
    with pytest.raises(UserError, match="KL weight of 0"):
        iwae = replace(config, metrics=("iwae",))
        evaluate_autoencoder(Autoencoder(AutoencoderConfig()), data, iwae, loss=LossConfig(kl_weight=0))


def test_a_perceptual_distance_where_there_is_one():
    data, model = ShapesData("validation", 16, size=(64, 32)), Autoencoder(AutoencoderConfig(block_out_channels=(8, 8)))
    evaluators = AutoencoderEvaluators(lpips=lambda a, b: (a - b).square().mean((1, 2, 3)))
    config = AutoencoderEvaluationConfig(metrics=("psnr", "lpips"), batch_size=5)
    found = evaluate_autoencoder(model, data, config, evaluators=evaluators)
    assert found["lpips"].name == "LPIPS[vgg]" and not found["lpips"].higher_is_better
    assert found["lpips"].value > 4 / 10 ** (found["psnr"].value / 10), "mean of logarithms below the logarithm of mean"
    without = evaluate_autoencoder(model, data, replace(config, metrics=()), evaluators=AutoencoderEvaluators())
    assert {"psnr", "rate"} <= {figure.metric for figure in without.figures} and "lpips" not in without.manifest
    with pytest.raises(UserError, match="alex needs images of 31 pixels"):
        evaluate_autoencoder(model, data, replace(config, lpips_network="alex"), evaluators=evaluators)


def test_the_error_of_rfid_is_the_scatter_over_fresh_images():
    class Passed:
        """Of a batch of features, as if they were those of images and reconstructions."""

        def __init__(self, images, restored):
            self.images, self.restored = images, restored

    class Nothing(Extractor):
        name, dim, preprocessing = "nothing", 3, "none"

        def __call__(self, images):
            return images

    found, config = [], AutoencoderEvaluationConfig(seed=0)
    for seed in range(60):
        draws = torch.Generator().manual_seed(seed)
        real = torch.randn(100, 3, generator=draws)
        measure = autoencoder_metrics.get("rfid")
        measure.start(AutoencoderEvaluation(None, None, config, AutoencoderEvaluators(Nothing())))
        measure.add(Passed(real, 0.7 * real + 0.5 + 0.3 * torch.randn(100, 3, generator=draws)))
        found.append(measure.figures()[0])
    errors = np.array([figure.standard_error for figure in found])
    assert np.std([figure.value for figure in found]) == pytest.approx(np.sqrt((errors**2).mean()), rel=0.25)


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_pictures(name, runs, ldm, tmp_path):
    found = ldm("evaluate", runs / name / "vae", *("--data", "shapes", "--image-size", "16", "--metrics", "psnr"),
                *("--shapes-validation", "20", "--device", "cpu", "--pictures", tmp_path / "pictures"))  # fmt: skip
    assert found.code == 0, found.err
    assert ("spherical (slerp) lines" if name == "kl" else "straight lines") in found.out
    columns = {"reconstructions": (8, 2), "interpolation": (9, 8), "traversal": (9, 4)}
    for picture, (across, down) in columns.items():
        with Image.open(tmp_path / "pictures" / f"{picture}.png") as image:
            assert image.width / image.height == pytest.approx((18 * across - 2) / (18 * down - 2), rel=1e-6)
            assert image.text["ldm"] in found.out


def test_refusals(runs, models, refused, tmp_path):
    def check(*arguments, words):
        refused(["evaluate", *arguments, "--device", "cpu"], *words)

    check(runs / "vq", "--metrics", "iwae", words=["--metrics iwae", "vq", "no density", "kl, bn, vmf, nvae have"])
    check(runs / "none", "--metrics", "rate", words=["--metrics rate", "none", "neither codes nor a prior"])
    check(runs / "kl", "--metrics", "psnrr", words=["unknown metric 'psnrr'", '"psnr"'])
    check(runs / "kl", "--metrics", "bits_per_dim", words=["unknown metric"])
    check(
        runs / "kl", "--metrics", "lpips", words=["LPIPS", "vgg16-397923af.pth", "checkpoints", "--lpips-weights FILE"]
    )
    check(runs / "kl", "--lpips-weights", tmp_path / "no.pth", words=["no.pth", "no such file", "checkpoints"])
    check(runs / "kl", "--iwae-samples", "3", "8", words=["--iwae-samples", "3 8"])
    check(runs / "kl", "--likelihood-scale", "0", words=["--likelihood-scale", "above 0"])
    check(runs / "kl", "--image-size", "17", words=["--image-size 17", "divisible"])
    check(runs / "kl", "--pictures", runs / "kl", words=["--pictures", "not an empty folder"])
    check(models.text, "--metrics", "psnr", words=["unknown metric 'psnr'"])


# Several


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def compare(runs, names, out, *flags):
    chosen = [runs / name for name in names]
    return ["compare", "autoencoders", *chosen, *TRAINED, "--columns", "5", "--output-dir", out, *flags]


def test_a_comparison_is_made_continued_and_leaves_the_runs_alone(runs, ldm, refused, tmp_path, monkeypatch):
    before, out = contents(runs), tmp_path / "out"
    names = ["kl", "vq", "none", "linear", "fsq"]
    found = ldm(*compare(runs, names, out))
    assert found.code == 0, found.err
    assert contents(runs) == before
    assert found.out.startswith("data: shapes")
    lines = found.out.split("captions in all\n")[1].splitlines()
    assert [line.split()[0] for line in lines[2:7]] == names
    content = json.loads((out / "autoencoders.json").read_text())
    by_name = {row["name"]: row for row in content["runs"]}
    assert by_name["linear"]["latents"] == [4, 8, 8] and by_name["linear"]["steps"] is None
    assert by_name["kl"]["steps"] == 6 and by_name["kl"]["seconds"] > 0
    for name in ("kl", "vq"):
        model = Autoencoder.from_pretrained(runs / name / "vae")
        total = sum(parameter.numel() for parameter in model.parameters())
        assert by_name[name]["encoder_parameters"] + by_name[name]["decoder_parameters"] == total
    with open(out / "autoencoders.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["run"] for row in rows] == names
    assert float(rows[1]["codebook/perplexity"]) <= 16 and rows[2]["rate"] == ""
    with Image.open(out / "reconstructions.png") as page, Image.open(out / "rate-distortion.png") as plot:
        assert page.size == (160 + 5 * 100, 6 * 100) and plot.width > 800
    assert (out / "rate-distortion.svg").read_text().startswith("<?xml")

    stored = sorted((out / "rows").glob("*.json"))
    stored[0].unlink()  # as after an interruption
    times = {path: path.stat().st_mtime_ns for path in stored[1:]}
    measured = []
    import ldm.comparison.autoencoders.compare as module

    real = module.evaluate_autoencoder
    monkeypatch.setattr(module, "evaluate_autoencoder", lambda *a, **k: measured.append(1) or real(*a, **k))
    again = ldm(*compare(runs, names, out))
    assert again.code == 0 and again.out == found.out and len(measured) == 1
    assert {path: path.stat().st_mtime_ns for path in stored[1:]} == times
    refused(compare(runs, names, out, "--num-images", "8"), "made with another", "num_images")


def test_what_cannot_be_compared_is_refused_by_name(runs, models, refused, tmp_path):
    def check(names, *flags, words):
        refused(compare(runs, names, tmp_path / "out", *flags), *words)

    check([], words=["RUN is missing"])
    check(["kl", models.text], words=[models.text, "model that generates"])
    check(["kl", "nowhere"], words=["nowhere", "no such folder"])
    check(["kl", "kl"], words=["given twice"])
    check(["kl"], "--metrics", "codebook", words=["--metrics codebook", "no codes"])
    check(["kl", "vq"], "--image-size", "32", words=["kl", "16 pixels", "32"])
    check(["kl", "vq"], "--shapes-seed", "5", words=["kl", "trained on other images"])
    check(["kl"], "--metrics", "lpips", words=["--lpips-weights FILE"])
    refused(compare(runs, ["kl"], runs / "kl" / "out"), "lies in the run")
    other = tmp_path / "other"
    shutil.copytree(runs / "vq", other)
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("image_size: 16", "image_size: 32"))
    check(["kl", other], words=["other", "32 pixels", "16"])


def test_names_from_folders_are_inert(runs, ldm, tmp_path):
    from ldm.cli.compare_autoencoders import names_of

    assert names_of([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]) == ["a/run", "b/run"]
    odd = tmp_path / "=cmd|$x$\x1b[31m"
    shutil.copytree(runs / "vq", odd)
    found = ldm(*compare(runs, [odd], tmp_path / "out", "--metrics", "psnr", "rate"))
    assert found.code == 0, found.err
    assert "\x1b" not in found.out and "\\x1b" in found.out
    assert (tmp_path / "out" / "autoencoders.csv").read_text().splitlines()[1].startswith("'=cmd")
