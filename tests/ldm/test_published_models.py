"""A published model is what was published, or is refused by name; those who edit it take it as it is."""

import json
import logging
import os
import shutil

import pytest

from autoencoders import Autoencoder, AutoencoderConfig, Generator, GeneratorConfig
from autoencoders.priors import CodeGrid, CodePriors, PriorConfig, PriorShape
from ldm.conditioning.conditioner import Conditioner
from ldm.runtime import checksums
from ldm.runtime.errors import UserError
from ldm.sampling.loading import load_model
from ldm.sampling.model_folder import write_prior_index
from ldm.sampling.model_manifest import MANIFEST, differences, read_manifest
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.publication import publication

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = {"block_out_channels": (8, 8), "norm_num_groups": 4}


def flip_bit(path):
    """In the last weight, least bit: finite, of the same length, and nearly the same number."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Folders of the kinds that `models` has not: a generator, and a prior over codes."""
    root = tmp_path_factory.mktemp("others")
    with publication(root / "generator", step=3) as folder:
        Generator(GeneratorConfig(**SMALL, noise_size=2)).save_pretrained(folder / "generator")
    autoencoder = Autoencoder(AutoencoderConfig(**SMALL, bottleneck="vq", num_codes=4))
    shape = PriorShape((CodeGrid(4, 2, 2),), 2, None)
    with publication(root / "prior", step=3, autoencoder=autoencoder.fingerprint()) as folder:
        autoencoder.save_pretrained(folder / "vae")
        CodePriors(PriorConfig(width=8, layers=1), shape, seed=0).save_pretrained(folder / "prior")
        Conditioner(["a", "b"], None, class_conditional=True, dropout=0.1).save_pretrained(folder)
        write_prior_index(folder, {})
    return root


@pytest.fixture
def published(models, others, tmp_path):
    """`published(kind)`: a copy of a model folder and how it is loaded."""

    def copy(kind):
        source = others / kind if kind in ("generator", "prior") else getattr(models, kind)
        folder = shutil.copytree(source, tmp_path / kind, ignore=shutil.ignore_patterns("checkpoint-*", "samples"))
        if kind == "classifier":
            return folder, lambda **more: Pipeline.load(models.text, classifier=folder, **more)
        if kind == "unconditional":  # as the guiding model of another
            return folder, lambda **more: Pipeline.load(models.text, weak=folder, **more)
        return folder, lambda **more: load_model(folder, **more)

    return copy


CHANGES = {  # the model, what happens to it, what is named
    "bit of the U-Net": ("text", lambda f: flip_bit(f / "unet" / WEIGHTS), f"unet/{WEIGHTS} differs"),
    "bit of the text encoder": (
        "text",
        lambda f: flip_bit(f / "text_encoder" / "model.safetensors"),
        "text_encoder/model.safetensors differs",
    ),
    "bit of the autoencoder": ("classes", lambda f: flip_bit(f / "vae" / WEIGHTS), "vae is another autoencoder"),
    "bit of a classifier": ("classifier", lambda f: flip_bit(f / "classifier" / WEIGHTS), "classifier/.* differs"),
    "bit of a guiding model": ("unconditional", lambda f: flip_bit(f / "unet" / WEIGHTS), "unet/.* differs"),
    "bit of a generator": ("generator", lambda f: flip_bit(f / "generator" / WEIGHTS), "generator/.* differs"),
    "bit of a prior": ("prior", lambda f: flip_bit(f / "prior" / WEIGHTS), "prior/.* differs"),
    "classes reordered": (
        "classes",
        lambda f: edit(f / "conditioning.json", lambda c: c["class_names"].reverse()),
        "its class names are in another order than in training",
    ),
    "a class renamed": (
        "prior",
        lambda f: edit(f / "conditioning.json", lambda c: c.update(class_names=["a", "c"])),
        "class 1 is named c, in training b",
    ),
    "classes of a classifier reordered": (
        "classifier",
        lambda f: edit(f / "classifier" / "facts.json", lambda c: c["class_names"].reverse()),
        "classes",
    ),
    "dropout": (
        "classes",
        lambda f: edit(f / "conditioning.json", lambda c: c.update(dropout=0.5)),
        r"conditioning\.json",
    ),
    "scheduler": (
        "classes",
        lambda f: edit(f / "scheduler" / "scheduler_config.json", lambda c: c.update(beta_end=0.013)),
        r"scheduler/scheduler_config\.json",
    ),
    "tokenizer": (
        "text",
        lambda f: edit(f / "tokenizer" / "tokenizer_config.json", lambda c: c.update(model_max_length=9)),
        r"tokenizer/tokenizer_config\.json",
    ),
    "broken manifest": ("classes", lambda f: (f / MANIFEST).write_text("{"), f"{MANIFEST}: not valid JSON"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_refused_by_name_unless_its_manifest_is_ignored(name, published, caplog):
    kind, change, problem = CHANGES[name]
    folder, load = published(kind)
    load()
    change(folder)
    with pytest.raises(UserError, match=problem) as refusal:
        load()
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)
    if name == "classes of a classifier reordered":
        return  # a classifier of other classes than the model's is refused in any case
    with caplog.at_level(logging.WARNING, "ldm"):
        load(ignore_manifest=True)
    assert "taken as it is" in caplog.text
    if (folder / MANIFEST).is_file():
        (folder / MANIFEST).unlink()
    load()  # a folder without a manifest is loaded as before


def test_one_class_too_few_is_refused_by_name(published):
    folder, load = published("classes")
    edit(folder / "conditioning.json", lambda content: content["class_names"].pop())
    edit(folder / "conditioning.json", lambda content: content.update(null_class=len(content["class_names"])))
    with pytest.raises(UserError, match="class names, the model was trained with"):
        load()


def test_another_autoencoder_is_refused_by_name(published, models):
    folder, load = published("classes")
    shutil.rmtree(folder / "vae")
    shutil.copytree(models.other_autoencoder / "vae", folder / "vae")
    with pytest.raises(UserError, match="vae is another autoencoder than the one that the model was trained on"):
        load()


def test_weights_are_read_for_their_checksums_once_and_when_they_change(published, monkeypatch):
    folder, load = published("classes")
    names = []
    real = checksums.sha256_of_file
    monkeypatch.setattr(checksums, "sha256_of_file", lambda path: names.append(path.name) or real(path))
    load()
    assert WEIGHTS in names
    names.clear()
    load()
    assert names == []
    path = folder / "unet" / WEIGHTS
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flip_bit(path)
    os.utime(path, ns=times)  # size and time of writing as before: the system's time of change is not
    with pytest.raises(UserError, match="unet"):
        load()
    assert names == [WEIGHTS]


def test_a_saved_model_has_a_manifest_of_its_own(models, tmp_path):
    Pipeline.load(models.classes, classifier=models.classifier, weak=models.unconditional).save(tmp_path / "saved")
    manifest, source = read_manifest(tmp_path / "saved"), read_manifest(models.classes)
    assert differences(tmp_path / "saved", manifest) == [] and manifest.class_names == source.class_names
    assert manifest.autoencoder == source.autoencoder != ""
    assert {name.split("/")[0] for name in manifest.files} >= {"unet", "vae", "classifier", "weak_unet"}
    Pipeline.load(tmp_path / "saved")


def test_verify_reads_everything_and_names_what_is_damaged(ldm, models, tmp_path):
    run = shutil.copytree(models.classes, tmp_path / "run")
    whole = ldm("info", run, "--verify")
    assert whole.code == 0 and whole.err == "" and "verified: model of step 60" in whole.out
    assert "verified: checkpoint-60" in whole.out and "published: after step 60" in whole.out
    flip_bit(run / "unet" / WEIGHTS)
    flip_bit(run / "checkpoint-60" / "ema.safetensors")
    damaged = ldm("info", run, "--verify")
    assert damaged.code == 2 and damaged.err.count("\n") == 1
    assert f"model: unet/{WEIGHTS} differs" in damaged.err and "checkpoint-60: ema.safetensors differs" in damaged.err
    assert ldm("info", run).code == 0, "without it no weights are read"
    (run / MANIFEST).unlink()
    shutil.rmtree(run / "checkpoint-60")
    assert "nothing in it has checksums" in ldm("info", run, "--verify").err


@pytest.mark.parametrize("command", ["sample", "encode"])
def test_the_command_line_refuses_it_in_one_line_and_names_the_flag(command, ldm, refused, models, tmp_path, caplog):
    run = shutil.copytree(models.classes, tmp_path / "run")
    flip_bit(run / "vae" / WEIGHTS)
    out = ("--output-dir", tmp_path / "out", "--device", "cpu")
    arguments = {
        "sample": ("sample", run, "--num-images", 1, "--num-inference-steps", 1, *out),
        "encode": ("encode", "--data", "shapes", "--image-size", 16, "--shapes-train", 8, "--autoencoder", run, *out),
    }[command]
    refused(arguments, "vae is another autoencoder", "--ignore-manifest")
    assert ldm(*arguments, "--ignore-manifest").code == 0 and "taken as it is" in caplog.text
