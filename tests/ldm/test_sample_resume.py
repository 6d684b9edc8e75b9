"""`ldm sample` stopped at any batch goes on, adds images, refuses what is other, and leaves nothing over."""

import json
import os
import signal

import pytest
from PIL import Image

from ldm.runtime.locks import FolderLock

FAST = ["--num-inference-steps", "2", "--device", "cpu", "--batch-size", "2"]
BATCH, PRIOR = "ldm.sampling.pipeline.Pipeline.sample_batch", "ldm.sampling.single_pass.AutoencoderPrior.images"
KINDS = {
    "text": (BATCH, ["--prompt", "a red circle", "--prompt", "a star", "--num-images", "7", "--sampler", "ddpm"]),
    "path": (BATCH, ["--interpolate-seed", "4", "--prompt", "a ring", "--num-images", "5"]),
    "image": (BATCH, ["--init-image", "IMAGE", "--mask", "MASK", "--strength", "1", "--num-images", "5"]),
    "vae": (PRIOR, ["--num-images", "5"]),
}
MODELS = {"vae": "autoencoder"}  # the others: text


@pytest.fixture
def command(models, tmp_path):
    """The command that draws a kind into a folder."""
    for name, mode in (("IMAGE", "RGB"), ("MASK", "L")):
        image = Image.new(mode, (16, 16))
        image.putpixel((3, 3), 255 if mode == "L" else (255, 9, 9))
        image.save(tmp_path / f"{name}.png")

    def build(kind, folder, *more):
        flags = [str(tmp_path / f"{word}.png") if word in ("IMAGE", "MASK") else word for word in KINDS[kind][1]]
        fast = FAST[2:] if kind == "vae" else FAST
        return ["sample", getattr(models, MODELS.get(kind, "text")), *flags, *fast, *more, "--output-dir", folder]

    return build


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(where, number, call)`: the signal comes within the call of this number."""

    def stop(where, number, call):
        import importlib

        module, _, owner_name = where.rpartition(".")[0].rpartition(".")
        owner, name = getattr(importlib.import_module(module), owner_name), where.rpartition(".")[2]
        real, calls = getattr(owner, name), []

        def stopped(*arguments, **options):
            calls.append(name)
            if len(calls) == call:
                signal.raise_signal(number)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, stopped)

    return stop


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_started_again_it_draws_what_is_missing(kind, command, ldm, tmp_path, stop_at, monkeypatch):
    assert ldm(*command(kind, tmp_path / "whole")).code == 0
    for number, call in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):
        stop_at(KINDS[kind][0], number, call)
        outcome = ldm(*command(kind, tmp_path / "parts"))
        monkeypatch.undo()
        last = outcome.err.splitlines()[-1]
        assert outcome.code == 128 + number and "Traceback" not in outcome.err, outcome.err
        if (number, call) == (signal.SIGTERM, 1):
            assert last == "ldm: stopped" and not (tmp_path / "parts").exists(), "no image, no folder"
    count = len(files(tmp_path / "whole")) - 2  # the grid and the settings
    assert last == f"ldm: stopped after 4 of {count} images; the same command goes on from there"
    assert set(files(tmp_path / "parts")) == {*(f"{n:06d}.png" for n in range(4)), "unfinished.json"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("0*.png")}
    outcome = ldm(*command(kind, tmp_path / "parts"))
    assert outcome.code == 0 and "(4 there before)" in outcome.out
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in times} == times, "nothing is drawn twice"
    outcome = ldm(*command(kind, tmp_path / "parts"))
    assert outcome.code == 0 and f"{count} images ({count} there before)" in outcome.out
    assert files(tmp_path / "parts") == files(tmp_path / "whole"), "and a whole folder stays as it is"


def test_more_images_are_added_and_equal_those_made_at_once(command, ldm, tmp_path):
    for count in (2, 4, 7):
        assert ldm(*command("text", tmp_path / "parts", "--num-images", count)).code == 0
        before = files(tmp_path / "parts")
        assert len(before) == count + 2 and len(json.loads(before["settings.json"])["requests"]) == count
    assert ldm(*command("text", tmp_path / "whole")).code == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


OTHER = [
    (["--seed", "1"], "seed was 0, is 1"),
    (["--first-index", "2"], "first_index was 0, is 2"),
    (["--num-inference-steps", "3"], "num_inference_steps was 2, is 3"),
    (["--sampler", "ddim"], "sampler was 'ddpm', is 'ddim'"),
    (["--prompt", "a ring"], "image 2: prompt was 'a red circle', is 'a ring'"),
    (["--num-images", "3"], "holds 7 earlier samples, more than --num-images 3"),
]


def test_other_samples_are_refused_by_what_differs(command, ldm, refused, tmp_path):
    folder = tmp_path / "out"
    assert ldm(*command("text", folder)).code == 0
    for more, words in OTHER:
        refused(command("text", folder, *more), str(folder), words, "give a new folder, or --overwrite")
    assert ldm(*command("text", folder, "--num-images", 3, "--overwrite")).code == 0
    assert len(files(folder)) == 5


def test_another_model_is_told_by_its_weights(models, command, ldm, refused, tmp_path):
    import shutil

    shutil.copytree(models.text, tmp_path / "model")
    order = command("text", tmp_path / "out")
    assert ldm("sample", tmp_path / "model", *order[2:]).code == 0
    assert ldm(*order).code == 0, "the same weights in another folder"
    weights = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    other = ["sample", tmp_path / "model", *order[2:]]
    refused(other, "unet/diffusion_pytorch_model.safetensors differs from its SHA-256", "--ignore-manifest")
    found = ldm(*other, "--ignore-manifest")
    assert found.code == 2 and "fingerprint.model was" in found.err and "--overwrite" in found.err


def test_two_commands_do_not_share_a_folder(command, refused, ldm, tmp_path):
    lock = FolderLock(tmp_path / "out", work="sampling")
    refused(command("text", tmp_path / "out"), "another process is sampling there")
    lock.close()
    assert ldm(*command("text", tmp_path / "out")).code == 0 and ".lock" not in os.listdir(tmp_path / "out")


def test_overwriting_that_was_stopped_goes_on(command, ldm, tmp_path, stop_at, monkeypatch):
    """The earlier samples stay until the first new image is there."""
    order = command("text", tmp_path / "out", "--overwrite")
    assert ldm(*command("text", tmp_path / "whole", "--seed", 5)).code == 0
    assert ldm(*order).code == 0
    before = files(tmp_path / "out")
    stop_at(BATCH, signal.SIGINT, 1)
    assert ldm(*order, "--seed", 5).code == 130
    monkeypatch.undo()
    assert files(tmp_path / "out") == before
    stop_at(BATCH, signal.SIGINT, 3)
    assert ldm(*order, "--seed", 5).code == 130
    monkeypatch.undo()
    assert set(files(tmp_path / "out")) == {*(f"{n:06d}.png" for n in range(4)), "unfinished.json"}
    assert "(4 there before)" in ldm(*order, "--seed", 5).out
    assert files(tmp_path / "out") == files(tmp_path / "whole")
