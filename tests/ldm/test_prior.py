"""Priors over codes from the command line: train, resume, sample, refuse."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autoencoders import Autoencoder
from ldm.sampling.code_prior import CodePriorModel
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.loading import load_model
from ldm.training.tasks.prior import code_grids

SMALL = {
    "pixelcnn": ["--kind", "pixelcnn", "--width", "16", "--layers", "3", "--kernel-size", "3"],
    "transformer": ["--kind", "transformer", "--width", "32", "--layers", "1", "--heads", "2"],
}
CODES = {
    "vq": ["--num-codes", "32", "--codebook-init", "data"],
    "gumbel": ["--num-codes", "16"],
    "residual_vq": ["--num-codes", "8", "--num-quantizers", "2", "--codebook-init", "data"],
    "fsq": ["--levels", "3", "3", "3", "3"],
    "lfq": [],
    "vqvae2": ["--num-codes", "16", "--code-width", "8", "--code-levels", "3", "--codebook-init", "data"],
}


@pytest.fixture(scope="module")
def coders(models):
    """An autoencoder of each kind, of 16 x 16 shapes: 8 x 8 codes."""
    from ldm.cli.main import main

    folders = {}
    for name, flags in CODES.items():
        folders[name] = models.root / f"codes-{name}"
        steps = 20 if name in ("vq", "gumbel") else 1
        assert main(models.command("autoencoder", folders[name], "--bottleneck", name, *flags, steps=steps)) == 0
    return folders


@pytest.fixture(scope="module")
def train(models, coders):
    """`train(coder, kind, folder, *flags, steps=...)`: the arguments of a training."""

    def arguments(coder, kind, folder, *flags, steps=30):
        shared = ["--shapes-train", "64", "--text-width", "16", "--text-layers", "1", "--text-heads", "2"]
        plain = [*models.command("autoencoder", folder, steps=steps)[2:]]
        of_autoencoders = {"--block-out-channels": 3, "--norm-num-groups": 2, "--no-attention": 1}
        of_autoencoders |= {"--latent-channels": 2, "--calibration-images": 2}
        flags_of_priors, skip = [], 0
        for word in plain:
            skip = of_autoencoders.get(word, skip)
            if skip:
                skip -= 1
            else:
                flags_of_priors.append(word)
        own = ["--autoencoder", str(coders[coder]), "--codes", str(models.root / f"cache-{coder}"), *SMALL[kind]]
        return ["train", "prior", *flags_of_priors, *shared, *own, "--preview-images", "0", *map(str, flags)]

    return arguments


BY_CLASS = ["--text-encoder", "None"]


@pytest.fixture(scope="module")
def priors(models, train):
    """Runs: a PixelCNN of classes, a transformer of text, and three unconditional PixelCNNs, one for each level."""
    from ldm.cli.main import main

    folders = {name: models.root / f"prior-{name}" for name in ("classes", "text", "free")}
    assert main(train("vq", "pixelcnn", folders["classes"], *BY_CLASS, steps=40)) == 0
    assert main(train("gumbel", "transformer", folders["text"], "--token-masking", 0.1, steps=30)) == 0
    assert main(train("vqvae2", "pixelcnn", folders["free"], *BY_CLASS, "--class-conditional", "False", steps=3)) == 0
    return folders


def sample(folder, output, *more):
    return ["sample", folder, "--device", "cpu", "--output-dir", output, *more]


def measures(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line][-1]


def test_held_out_codes_cost_less_than_log2_k(priors):
    classes, text, free = (measures(priors[name]) for name in ("classes", "text", "free"))
    assert classes["bits_per_code_uniform"] == 5 and text["bits_per_code_uniform"] == 4
    assert free["bits_per_code_uniform"] == 4 and "bits_per_code_unconditional" not in free
    levels = [free[f"bits_per_code_level_{level}"] for level in range(3)]  # of 4, 16 and 64 codes
    assert free["bits_per_code"] == pytest.approx((4 * levels[0] + 16 * levels[1] + 64 * levels[2]) / 84)
    for run in (classes, text):
        assert run["bits_per_code"] < run["bits_per_code_uniform"]
        assert math.isfinite(run["bits_per_code_unconditional"])
        assert run["bits_per_pixel"] == pytest.approx(run["bits_per_code"] * 64 / 256)


def test_pictures_each_from_its_own_number_class_and_text(priors, ldm, tmp_path):
    flags = ["--guidance-scale", 2, "--top-k", 8, "--top-p", 0.9, "--temperature", 0.9]
    outcome = ldm(*sample(priors["classes"], tmp_path / "a", "--num-images", 3, "--batch-size", 2, *flags))
    assert outcome.code == 0 and "3 images" in outcome.out, outcome.err
    with Image.open(tmp_path / "a" / "000002.png") as image:
        assert image.size == (16, 16)
        metadata = json.loads(image.text["ldm"])
    assert metadata["sampling"]["top_k"] == 8 and metadata["request"]["class_label"] == 2
    one = ["--num-images", 1, "--first-index", 2, "--class-label", 2, *flags]
    assert ldm(*sample(priors["classes"], tmp_path / "b", *one)).code == 0
    assert (tmp_path / "b" / "000000.png").read_bytes() == (tmp_path / "a" / "000002.png").read_bytes()
    png = tmp_path / "a" / "000001.png"
    outcome = ldm(*sample(priors["classes"], tmp_path / "c", "--recreate", png))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "c" / "000000.png").read_bytes() == png.read_bytes()
    text = ["--prompt", "a red circle", "--guidance-scale", 3, "--negative-prompt", "a blue square", "--num-images", 2]
    outcome = ldm(*sample(priors["text"], tmp_path / "d", *text))
    assert outcome.code == 0, outcome.err
    assert ldm(*sample(priors["free"], tmp_path / "e", "--num-images", 1)).code == 0


def test_the_folder_is_a_whole_model(priors, coders):
    model = load_model(priors["classes"])
    assert isinstance(model, CodePriorModel) and model.image_size == 16 and len(model.class_names) > 1
    index = json.loads((priors["classes"] / "model_index.json").read_text())
    assert {"vae", "prior", "_conditioning"} <= set(index)
    state = torch.get_rng_state()
    requests = [Request(class_label=1)] * 3
    together = torch.cat(list(model.generate(requests, seed=5, batch_size=3)))
    assert together.shape == (3, 3, 16, 16) and together.abs().max() <= 1 and torch.equal(state, torch.get_rng_state())
    alone = next(model.generate(requests[:1], seed=5, first_index=1))
    assert torch.allclose(alone[0], together[1], atol=1e-6)
    code_maps = model.codes(requests, [torch.Generator().manual_seed(i) for i in range(3)])
    assert [tuple(maps.shape) for maps in code_maps] == [(3, 8, 8)]
    likeliest = SamplingConfig(temperature=1e-3)  # whatever the random numbers
    model.check(requests, likeliest)
    assert torch.equal(torch.cat(list(model.generate(requests, seed=5, batch_size=3))), together), (
        "a check changes nothing"
    )
    greedy = torch.cat(list(model.generate(requests, likeliest)))
    assert torch.equal(greedy[0], greedy[1]) and not torch.equal(together[0], together[1])
    own = Autoencoder.from_pretrained(coders["vq"] / "vae")
    assert model.autoencoder.fingerprint() == own.fingerprint()


@pytest.mark.parametrize(
    ("coder", "kind"),
    [("fsq", "pixelcnn"), ("lfq", "transformer"), ("residual_vq", "transformer"), ("vqvae2", "transformer")],
)
def test_every_kind_of_codes_can_be_learned(coder, kind, train, ldm, tmp_path):
    assert ldm(*train(coder, kind, tmp_path / "run", *BY_CLASS, "--preview-images", 2, steps=2)).code == 0
    assert (tmp_path / "run" / "samples" / "step-000002.png").is_file()
    assert ldm(*sample(tmp_path / "run", tmp_path / "out", "--num-images", 1)).code == 0


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(kind, train, ldm, tmp_path):
    flags = ["--token-masking", 0.2, "--dropout", 0.1, "--checkpointing-steps", 2]
    whole = train("vq", kind, tmp_path / "whole", *flags, steps=4)
    part = train("vq", kind, tmp_path / "part", *flags, steps=2)
    rest = train("vq", kind, tmp_path / "part", *flags, steps=4)
    for command in (whole, part, rest):
        outcome = ldm(*command)
        assert outcome.code == 0, outcome.err
    first, second = (
        load_file(tmp_path / name / "prior" / "diffusion_pytorch_model.safetensors") for name in ("whole", "part")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    changed = train("vq", kind, tmp_path / "part", *flags[2:], steps=5)
    outcome = ldm(*changed)
    assert outcome.code == 2 and "token_masking" in outcome.err


def test_codes_are_found_once_and_those_of_another_autoencoder_are_refused(
    train, models, coders, refused, ldm, tmp_path
):
    cache = tmp_path / "cache"
    assert ldm(*train("vq", "pixelcnn", tmp_path / "run", "--codes", cache, steps=1)).code == 0
    stored = load_file(cache / "codes.safetensors")["level_0"]
    assert stored.shape == (64, 1, 8, 8) and stored.dtype == torch.int16
    other = train("fsq", "pixelcnn", tmp_path / "other", "--codes", cache, steps=1)
    refused(other, "stale", "autoencoder")
    save_file({"level_0": stored + 1}, cache / "codes.safetensors")
    outcome = ldm(*train("vq", "pixelcnn", tmp_path / "run", "--codes", cache, steps=2))
    assert outcome.code == 2 and "damaged" in outcome.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    refused(train("vq", "pixelcnn", tmp_path / "new", "--codes", tmp_path / "full"), "letter.txt")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--autoencoder", "identity"], ["identity", "no codes", "--bottleneck vq"]),
        (["--autoencoder", "KL"], ["bottleneck kl has no codes"]),
        (["--autoencoder", "nowhere"], ["nowhere", "no such folder"]),
        (["--kind", "transformer", "--width", 10, "--heads", 4], ["heads", "divisor of width 10"]),
        (["--kernel-size", 4], ["kernel_size", "odd"]),
        (["--token-masking", 1.0], ["token_masking", "below 1"]),
        (["--dropout", -0.5], ["dropout"]),
        (["--layers", 0], ["layers"]),
        (["--validation-images", 0], ["--validation-images"]),
        (["--first-caption-probability", 2], ["--first-caption-probability"]),
        (["--gradient-checkpointing"], ["--gradient-checkpointing"]),
        (["--temperature", 2], ["temperature"]),
    ],
)
def test_a_training_that_cannot_be_is_refused(flags, words, train, models, refused, tmp_path):
    flags = [models.autoencoder if flag == "KL" else flag for flag in flags]
    refused(train("vq", "pixelcnn", tmp_path / "run", *flags), *words)


def test_more_codes_than_a_prior_can_tell_apart_are_refused(models, ldm, refused, train, tmp_path):
    flags = ["--bottleneck", "lfq", "--latent-channels", 20]
    assert ldm(*models.command("autoencoder", tmp_path / "ae", *flags, steps=1)).code == 0
    refused(train("vq", "pixelcnn", tmp_path / "run", "--autoencoder", tmp_path / "ae"), "too many codes", "1048576")


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("classes", ["--temperature", 0], ["--temperature"]),
        ("classes", ["--top-k", 0], ["--top-k"]),
        ("classes", ["--top-p", 1.5], ["--top-p"]),
        ("classes", ["--prompt", "a circle"], ["--prompt", "no text"]),
        ("classes", ["--class-label", "unicorn"], ["unicorn"]),
        ("classes", ["--negative-class", "circle"], ["--negative-class", "--guidance-scale"]),
        ("classes", ["--num-inference-steps", 5], ["--num-inference-steps", "without diffusion"]),
        ("classes", ["--guidance", "pag(2)"], ["--guidance"]),
        ("text", ["--class-label", 1], ["--class-label", "no classes"]),
        ("free", ["--guidance-scale", 2], ["--guidance-scale", "unconditional"]),
    ],
)
def test_samples_that_cannot_be_are_refused(model, flags, words, priors, refused, tmp_path):
    refused(sample(priors[model], tmp_path / "x", *flags), *words)


def test_diffusion_obeys_no_settings_of_codes(models, refused, tmp_path):
    refused(sample(models.text, tmp_path / "x", "--top-k", 5), "--top-k", "no codes")


def test_a_damaged_model_is_refused(priors, tmp_path, ldm):
    import shutil

    folder = tmp_path / "model"
    for change, word in [
        (lambda: (folder / "conditioning.json").unlink(), "conditioning.json"),
        (lambda: (folder / "vae" / "config.json").unlink(), "vae/config.json"),
        (lambda: shutil.copytree(priors["text"] / "prior", folder / "prior", dirs_exist_ok=True), "not for the codes"),
        (lambda: (folder / "prior" / "config.json").write_text("{}"), "CodePriors"),
    ]:
        shutil.copytree(priors["classes"], folder)
        change()
        outcome = ldm(*sample(folder, tmp_path / "out"))
        assert outcome.code == 2 and word in outcome.err and outcome.err.count("\n") == 1, outcome.err
        shutil.rmtree(folder)


def test_the_grid_of_several_codebooks(coders):
    (grid,) = code_grids(Autoencoder.from_pretrained(coders["residual_vq"] / "vae"), 16, "ae")
    assert (grid.num_codes, grid.height, grid.width, grid.codebooks) == (8, 8, 16, 2)


def test_evaluate_tells_the_bits_and_the_distances(models, priors, ldm, refused, tmp_path, monkeypatch):
    from ldm.evaluation import evaluate
    from ldm.evaluation.features.extractors import Extractor

    class Pooled(Extractor):
        name, dim, preprocessing = "pooled", 12, "none"

        def __call__(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1).double()

    evaluators = evaluate.Evaluators(Pooled(), None)
    monkeypatch.setattr(evaluate, "prepare_evaluators", lambda *_, **__: evaluators)
    flags = ["--num-images", "16", "--device", "cpu", "--top-k", "8"]
    outcome = ldm("evaluate", priors["classes"], *flags, "--output", tmp_path / "figures.json")
    assert outcome.code == 0, outcome.err
    figures = {figure["name"]: figure for figure in json.loads((tmp_path / "figures.json").read_text())["figures"]}
    assert {"bits_per_code", "bits_per_code[null]", "bits_per_pixel", "FD[pooled]"} <= set(figures)
    assert figures["bits_per_code[uniform]"]["value"] == 5
    assert figures["bits_per_pixel"]["value"] == pytest.approx(figures["bits_per_code"]["value"] / 4)
    assert figures["bits_per_code"]["value"] == pytest.approx(measures(priors["classes"])["bits_per_code"], abs=0.3)
    flags = ["--num-images", "16", "--device", "cpu", "--metrics", "bits_per_code"]  # alone: no samples
    outcome = ldm("evaluate", priors["free"], *flags, "--output", tmp_path / "bits.json")
    assert outcome.code == 0, outcome.err
    names = {figure["name"] for figure in json.loads((tmp_path / "bits.json").read_text())["figures"]}
    levels = {f"bits_per_code[level {level}]" for level in range(3)}
    assert names == {"bits_per_code", "bits_per_pixel", "bits_per_code[uniform]", *levels}
    refused(["evaluate", priors["classes"], "--metrics", "bits_per_dim"], "bits_per_dim")
    refused(["evaluate", models.classes, "--metrics", "bits_per_code"], "bits_per_code", "ldm train prior")
    refused(["evaluate", priors["classes"], "--num-inference-steps", "9"], "--num-inference-steps")


@pytest.mark.usefixtures("quick_networks")
def test_samples_of_a_prior_are_measured_on_the_way(train, ldm, tmp_path):
    looks = ["--eval-every", 1, "--eval-num-images", 8, "--eval-guidance-scale", 2, "--eval-metrics", "fid"]
    assert ldm(*train("vq", "pixelcnn", tmp_path / "run", *BY_CLASS, *looks, steps=2)).code == 0
    assert len(list((tmp_path / "run" / "evaluations").iterdir())) == 2
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert best["measure"].startswith("FD[") and best["step"] in (1, 2)
    CodePriorModel.load(tmp_path / "run" / "best")
