"""Same seed, same start: at its neutral scale every method gives the samples of the model alone."""

import pytest
import torch

from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.pipeline import Pipeline
from samplers import guidances

# name -> (a call without effect, one with effect); a new guidance is added here
CALLS = {
    "apg": ("apg(1)", "apg(4)"),
    "autoguidance": ("autoguidance(1)", "autoguidance(3)"),
    "cfg": ("cfg(1)", "cfg(4)"),
    "cfg_zero": ("cfg_zero(1)", "cfg_zero(4)"),
    "cfgpp": ("cfgpp(0)", "cfgpp(0.8)"),
    "classifier": ("classifier(0)", "classifier(20)"),
    "energy": ("energy(0)", "energy(3000)"),
    "fdg": ("fdg(1)", "fdg(4, low=2)"),
    "pag": ("pag(0)", "pag(4)"),
    "rescale": ("rescale(0)", "rescale(0.9)"),
    "seg": ("seg(0)", "seg(40)"),
    "slg": ("slg(0)", "slg(4)"),
    "tcfg": ("tcfg(1)", "tcfg(4)"),
    "threshold": ("threshold(limit=1e9)", "threshold(0.5, limit=0.1)"),
}
BASE = {"rescale": ("cfg(4)",)}  # guidances without which it has no effect
# CFG++ re-noises with the unconditional prediction, so at scale 1 it is not the model: at 0 it is the unconditional one
START = {"cfgpp": {"guidance_scale": 0.0}}
FAR = ("colour([1.0, -1.0, -1.0])",)


@pytest.fixture(scope="module")
def pipeline(models):
    return Pipeline.load(models.text, classifier=models.classifier, weak=models.root / "weak")


@pytest.fixture(scope="module", autouse=True)
def weak(models):
    """Another network than the model's: its own, less trained."""
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    copytree(models.text, models.root / "weak")
    path = models.root / "weak" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0.9 * value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    (models.root / "weak" / "model_manifest.json").unlink()  # it is edited on purpose


def draw(pipeline, sampler, guidance=(), **settings):
    energy = FAR if any(text.startswith("energy") for text in guidance) else ()
    sampling = SamplingConfig(sampler, 4, guidance=tuple(guidance), energy=energy, **settings)
    requests = [Request("a red circle", class_label=k % 4) for k in range(3)]
    return torch.cat(list(pipeline.generate(requests, sampling, seed=3)))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("name", sorted(guidances()))
def test_at_its_neutral_scale_a_method_gives_the_models_samples(pipeline, name, sampler):
    neutral, strong = CALLS[name]
    base = (*BASE.get(name, ()), "classifier(0)")  # with a classifier the requests may have a class
    alone = draw(pipeline, sampler, base, **START.get(name, {}))
    same = draw(pipeline, sampler, (*base, neutral))
    assert same.equal(alone) if name not in START else torch.allclose(same, alone, atol=1e-5)
    assert (draw(pipeline, sampler, (*base, strong)) - alone).abs().max() > 1e-4, "with effect elsewhere"


def test_the_samples_of_a_comparison_at_scale_1_are_the_same(models, ldm, tmp_path, quick_networks):
    methods = [neutral for name, (neutral, _) in CALLS.items() if name not in ("energy", *BASE, *START)]
    what = ["compare", models.text, "--classifier", models.classifier, "--weak", models.root / "weak", "--rows", 4]
    what += ["--methods", "none", "cfg", "cfg+classifier", *methods, "cfg(4)", "--guidance-scales", 1]
    what += ["--classifier-scales", 0, "--num-images", 24, "--num-inference-steps", 3, "--device", "cpu", "--no-judge"]
    what += ["--metrics", "fid", "--bootstrap", 0, "--num-reference", 24, "--extractor", "trained"]
    outcome = ldm(*what, "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    sample_rows = {path.name: path.read_bytes() for path in (tmp_path / "out" / "cells").glob("*.png")}
    alone = next(value for name, value in sample_rows.items() if name.startswith("none-"))
    assert len(sample_rows) == len(methods) + 2, "cfg 1 and cfg+classifier 1, 0 are none, which is sampled once"
    assert [value == alone for value in sample_rows.values()].count(False) == 1, "cfg(4) alone differs"
