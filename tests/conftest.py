"""Shared by all tests: one thread, no network, the command line in this process, and tiny models that it trained."""

import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
torch.set_num_threads(1)  # more only get in each other's way in tiny models
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"  # for the child processes of tests

SHAPES = ["--data", "shapes", "--image-size", "16", "--shapes-train", "64", "--shapes-validation", "32"]
TRAINING = [
    *SHAPES, "--device", "cpu", "--train-batch-size", "16", "--log-steps", "1", "--validation-steps", "0",
    "--validation-images", "16", "--checkpointing-steps", "1000",
]  # fmt: skip
NETWORK = [
    "--block-out-channels", "8", "16", "--attention", "False", "True", "--attention-head-dim", "8",
    "--norm-num-groups", "4", "--layers-per-block", "1",
]  # fmt: skip
FLAGS = {
    "autoencoder": [
        *TRAINING, "--block-out-channels", "8", "8", "--norm-num-groups", "4", "--no-attention",
        "--latent-channels", "4", "--calibration-images", "64", "--learning-rate", "5e-3",
    ],
    "diffusion": [
        *TRAINING, *NETWORK, "--text-width", "16", "--text-layers", "1", "--text-heads", "2",
        "--preview-images", "0", "--learning-rate", "1e-2",
    ],
    "classifier": [*TRAINING, *NETWORK, "--learning-rate", "1e-2"],
    "gan": [
        *TRAINING, "--block-out-channels", "8", "8", "8", "--norm-num-groups", "4", "--noise-channels", "4",
        "--no-attention", "--discriminator-width", "4", "--discriminator-layers", "2", "--learning-rate", "1e-3",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def ldm(capfd):
    """`ldm(*arguments)` runs the command line in this process: exit code, stdout, stderr."""
    from ldm.cli.main import main

    def run(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return run


def tree(*folders):
    """Every path below the folders, with the SHA-256 of what it holds."""
    paths = [path for folder in folders for path in [Path(folder), *sorted(Path(folder).rglob("*"))]]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else path.exists() for path in paths
    }


@pytest.fixture
def refused(ldm, caplog, models, tmp_path):
    """`refused(arguments, *words)`: exit code 2, one line on stderr with those words, and no file made or changed."""

    def check(arguments, *words):
        before = tree(tmp_path, models.root)
        caplog.clear()
        found = ldm(*arguments)
        assert found.code == 2, f"exit code {found.code}: {found.out}{found.err}"
        assert found.err.endswith("\n") and found.err.count("\n") == 1, found.err
        assert found.err.startswith("ldm: ") and found.err[:-1].isprintable()
        assert not found.out or found.out.startswith(("data: ", "defaults: ")), "nothing but what was read"
        logged = [record.getMessage() for record in caplog.records if record.name == "ldm"]
        assert not logged
        for word in words:
            assert str(word) in found.err, f"{word!r} is not in {found.err}"
        assert tree(tmp_path, models.root) == before
        return found.err

    return check


@dataclass(frozen=True)
class Models:
    """Run folders made by the command line."""

    root: Path
    autoencoder: Path
    text: Path  # text-conditional
    classifier: Path  # for `text`, and for `classes`
    classes: Path  # class-conditional
    no_dropout: Path  # class-conditional, trained with --condition-dropout 0
    unconditional: Path
    other_autoencoder: Path
    other_classifier: Path  # on the latents of other_autoencoder

    def command(self, kind, folder, *flags, steps=6):
        """Arguments of a training of tiny networks; those of a later flag win."""
        places = {
            "autoencoder": [],
            "gan": [],
            "diffusion": ["--autoencoder", self.autoencoder, "--latents", self.root / "latents"],
            "classifier": ["--autoencoder", self.text, "--latents", self.root / "latents"],
        }
        found = ["train", kind, *FLAGS[kind], *places[kind], "--max-train-steps", steps, *flags, "--output-dir", folder]
        return [str(argument) for argument in found]


def amplify_conditioning(folder):
    """Multiply the U-Net's conditioning weights by 4: a training of seconds leaves them too small to have an effect."""
    from safetensors.torch import load_file, save_file

    from ldm.sampling.model_folder import copy_part
    from ldm.sampling.publication import replaced_parts

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    amplified = ("attn2.to_v.", "attn2.to_out.", "class_embedding.")
    weights = {name: 4 * w if any(part in name for part in amplified) else w for name, w in load_file(path).items()}
    with replaced_parts(folder) as parts:
        copy_part(folder / "unet", parts / "unet")
        save_file(weights, parts / "unet" / path.name, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    from ldm.cli.main import main

    root = tmp_path_factory.mktemp("models")
    found = Models(root, **{name: root / name for name in Models.__annotations__ if name != "root"})

    def run(kind, folder, *flags, steps=12):
        assert main(found.command(kind, folder, *flags, steps=steps)) == 0

    run("autoencoder", found.autoencoder, steps=60)
    run("autoencoder", found.other_autoencoder, "--seed", 1, steps=1)
    run("diffusion", found.text, steps=60)
    run("classifier", found.classifier, steps=60)
    run("diffusion", found.classes, "--text-encoder", "None", steps=60)
    run("diffusion", found.no_dropout, "--text-encoder", "None", "--condition-dropout", 0)
    run("diffusion", found.unconditional, "--text-encoder", "None", "--class-conditional", "False")
    other = ("--autoencoder", found.other_autoencoder, "--latents", root / "other_latents")
    run("classifier", found.other_classifier, *other, steps=1)
    for folder in (found.text, found.classes, found.no_dropout):
        amplify_conditioning(folder)
    return found
