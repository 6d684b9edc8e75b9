"""The command line: what it writes, what makes a picture again, and the whole path through the installed command."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROMPTS = ["--prompt", "a red circle", "--prompt", "a small star on a grey background"]
GUIDED = ["--guidance-scale", "3", "--negative-prompt", "blue", "--num-inference-steps", "4", "--device", "cpu"]


def pixels(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


def settings_in(path):
    with Image.open(path) as image:
        return json.loads(image.text["ldm"])


@pytest.fixture
def made(models, ldm, tmp_path):
    """Nine pictures of two prompts in turn, and the folder that they are in."""
    folder = tmp_path / "made"
    outcome = ldm("sample", models.text, *PROMPTS, *GUIDED, "--num-images", 9, "--seed", 3, "--output-dir", folder)
    assert outcome.code == 0 and outcome.err == ""
    assert (
        outcome.out.startswith("defaults: ddim\n9 images, 72 network evaluations")
        and str(folder / "grid.png") in outcome.out
    )
    return folder


def test_sample_writes_pictures_a_grid_and_their_settings(made, models):
    names = sorted(path.name for path in made.iterdir())
    assert names == [*(f"{number:06d}.png" for number in range(9)), "grid.png", "settings.json"]
    assert pixels(made / "000000.png").shape == (16, 16, 3)
    settings = json.loads((made / "settings.json").read_text())
    assert settings["kind"] == "samples" and settings["seed"] == 3 and settings["model"] == str(models.text)
    assert settings["sampling"]["guidance_scale"] == 3 and settings["sampling"]["num_inference_steps"] == 4
    assert [request["prompt"] for request in settings["requests"]] == [PROMPTS[1 + 2 * (n % 2)] for n in range(9)]
    assert settings_in(made / "000005.png")["request"]["prompt"] == PROMPTS[3]
    enlarged = pixels(made / "grid.png")
    gap, side, factor = 2, 16, enlarged.shape[0] // (3 * 16 + 2 * 2)
    small = enlarged[::factor, ::factor]
    for number in range(9):
        top, left = (number // 3) * (side + gap), (number % 3) * (side + gap)
        tile = small[top : top + side, left : left + side]
        assert np.array_equal(tile, pixels(made / f"{number:06d}.png"))


def test_a_picture_is_made_again_from_itself(made, models, ldm, tmp_path):
    flags = ["--recreate", made / "000007.png", "--batch-size", 9, "--device", "cpu"]
    assert ldm("sample", models.text, *flags, "--output-dir", tmp_path / "again").code == 0
    assert settings_in(tmp_path / "again" / "000000.png") == settings_in(made / "000007.png")
    assert np.abs(pixels(tmp_path / "again" / "000000.png") - pixels(made / "000007.png")).max() <= 1
    # In a batch of the same size even the file is the same.
    flags = [*PROMPTS, *GUIDED, "--seed", 3, "--batch-size", 1]
    assert ldm("sample", models.text, *flags, "--num-images", 3, "--output-dir", tmp_path / "ones").code == 0
    flags = ["--recreate", tmp_path / "ones" / "000002.png", "--device", "cpu"]
    assert ldm("sample", models.text, *flags, "--output-dir", tmp_path / "one").code == 0
    assert (tmp_path / "one" / "000000.png").read_bytes() == (tmp_path / "ones" / "000002.png").read_bytes()


def test_one_picture_of_many_by_its_number(made, models, ldm, tmp_path):
    flags = [*PROMPTS, *GUIDED, "--seed", 3, "--first-index", 7, "--num-images", 2]
    assert ldm("sample", models.text, *flags, "--output-dir", tmp_path / "two").code == 0
    for here, there in (("000000", "000007"), ("000001", "000008")):
        difference = pixels(tmp_path / "two" / f"{here}.png") - pixels(made / f"{there}.png")
        assert np.abs(difference).max() <= 1
        assert settings_in(tmp_path / "two" / f"{here}.png") == settings_in(made / f"{there}.png")


def test_underscores_are_dashes(models, ldm, tmp_path):
    for name, change in (("dashes", "-"), ("underscores", "_")):
        flags = [flag[:2] + flag[2:].replace("-", change) if flag.startswith("--") else flag for flag in GUIDED]
        assert ldm("sample", models.text, *flags, f"--num{change}images=2", "--output-dir", tmp_path / name).code == 0
    a, b = ((tmp_path / name / "000001.png").read_bytes() for name in ("dashes", "underscores"))
    assert a == b


def test_classes_take_turns_by_name_or_number(models, ldm, tmp_path):
    flags = ["--num-inference-steps", 2, "--num-images", 7, "--device", "cpu"]
    assert ldm("sample", models.classes, *flags, "--output-dir", tmp_path / "all").code == 0
    requests = json.loads((tmp_path / "all" / "settings.json").read_text())["requests"]
    assert [request["class_label"] for request in requests] == [0, 1, 2, 3, 4, 5, 0]
    named = ["--class-label", "star", "--class-label", 1, "--negative-class", "circle", "--guidance-scale", 2]
    assert ldm("sample", models.classes, *flags, *named, "--output-dir", tmp_path / "named").code == 0
    requests = json.loads((tmp_path / "named" / "settings.json").read_text())["requests"]
    assert [request["class_label"] for request in requests] == [3, 1, 3, 1, 3, 1, 3]
    assert {request["negative_class"] for request in requests} == {0}


def test_classifier_guidance_of_a_text_model(models, ldm, tmp_path):
    flags = ["--classifier", models.classifier, "--classifier-scale", 2, "--class-label", "ring", "--guidance-scale", 0]
    fast = ["--num-inference-steps", 3, "--num-images", 2, "--device", "cpu"]
    for sampler in ("ddim", "ddpm"):
        outcome = ldm("sample", models.text, *flags, *fast, "--sampler", sampler, "--output-dir", tmp_path / sampler)
        assert outcome.code == 0 and "2 images, 12 network evaluations" in outcome.out


def test_lists(ldm):
    samplers = ldm("list", "samplers").out.splitlines()
    assert samplers[0].split() == ["name", "order", "random", "evaluations", "a", "step", "options", "source"]
    rows = {line.split()[0]: line for line in samplers[1:]}
    assert {"ddim", "ddpm", "dpmpp_2m"} <= rows.keys()
    assert re.match(r"ddim +1 +no +1 +eta=0.0 ", rows["ddim"]) and re.match(r"ddpm +1 +yes +1 ", rows["ddpm"])
    guidances = ldm("list", "guidances").out
    assert re.search(r"^cfg +\+1 +scale, against=uncond, ", guidances, re.MULTILINE) and "inspect" not in guidances
    configs = ldm("list", "configs").out.splitlines()
    assert configs == sorted(configs) and "cifar10/diffusion" in configs


@pytest.mark.parametrize("command", [[], ["list"], ["train"], ["sample"], ["train", "diffusion"], ["evaluate"]])
def test_help(command, ldm, capfd):
    try:
        outcome = ldm(*command, "--help")
        code, out = outcome.code, outcome.out
    except SystemExit as leaving:  # the parser's own
        code, out = leaving.code, capfd.readouterr().out
    assert code in (0, None) and "usage: ldm" in out
    if command == ["train", "diffusion"]:
        flags = ("--output-dir", "--learning-rate", "--train-batch-size", "--max-train-steps", "--mixed-precision")
        flags += ("--gradient-accumulation-steps", "--resume-from-checkpoint", "--seed", "--data", "--config")
        assert all(flag in out for flag in flags)


def test_nothing_to_do_shows_the_usage(ldm):
    assert ldm().code == 2 and ldm("train").code == 2
    assert ldm("--version").out.strip().count(".") == 2


STOPS = [
    (KeyboardInterrupt, 130),
    (FloatingPointError("step 3: nan"), 2),  # samples that are not finite
    (PermissionError(errno.EACCES, "no", "/file"), 2),
    (OSError(errno.ENOSPC, "full"), 1),
]


@pytest.mark.parametrize(("error", "code"), STOPS)
def test_what_stops_a_command_tells_the_shell_and_leaves_no_half_of_it(error, code, models, ldm, tmp_path, monkeypatch):
    def stop(*_):
        raise error

    monkeypatch.setattr("ldm.sampling.pipeline.Pipeline._decode", stop)
    outcome = ldm("sample", models.text, *GUIDED, "--prompt", "x", "--num-images", 1, "--output-dir", tmp_path / "out")
    assert outcome.code == code and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_evaluation_takes_the_data_that_the_model_was_trained_on(models, ldm, tmp_path):
    small = ["--device", "cpu", "--num-images", 8, "--num-inference-steps", 2, "--no-judge", "--extractor", "trained"]
    out = tmp_path / "figures.json"
    outcome = ldm("evaluate", models.text, *small, "--output", out)
    assert outcome.code == 0 and "FD[" in outcome.out and "FID" not in outcome.out
    manifest = json.loads(out.read_text())["manifest"]
    assert manifest["image_size"] == 16 and manifest["num_reference"] == 32, "of the run folder, not of the defaults"
    assert ldm("evaluate", models.text, *small, "--shapes-validation", 24, "--output", out).code == 0
    manifest = json.loads(out.read_text())["manifest"]
    assert manifest["image_size"] == 16 and manifest["num_reference"] == 24, "a flag changes what it names alone"


# The installed command


LDM = Path(sys.executable).parent / "ldm"


def installed(*arguments, command=(str(LDM),), **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [*command, *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900, **options)


def test_the_whole_path_through_the_installed_command(models, tmp_path):
    auto, latents, text, noisy = (tmp_path / name for name in ("ae", "latents", "text", "noisy"))

    def run(*arguments):
        outcome = installed(*arguments, cwd=tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr and "Warning" not in outcome.stderr
        return outcome.stdout

    shapes = ["--image-size", 16, "--shapes-train", 64, "--shapes-validation", 32, "--device", "cpu"]
    assert "psnr: " in run(*models.command("autoencoder", auto))
    assert "latents 4x8x8 of 64 images" in run("encode", "--autoencoder", auto, *shapes, "--output-dir", latents)
    places = ["--autoencoder", auto, "--latents", latents]
    assert "validation_loss: " in run(*models.command("diffusion", text, *places))
    places = ["--autoencoder", text, "--latents", latents]
    assert "accuracy" in run(*models.command("classifier", noisy, *places))
    small = ["--num-inference-steps", 2, "--device", "cpu"]
    flags = ["--prompt", "a red circle", "--guidance-scale", 7.5, "--negative-prompt", "blue", "--num-images", 4]
    assert "32 network" in run(
        "sample", text, *flags, *small, "--output-dir", tmp_path / "out", "--num-inference-steps", 4
    )
    measured = [*small, "--num-images", 8, "--no-judge"]
    assert "FD[" in run("evaluate", text, *measured)
    scales = ["--guidance-scales", 3, "--classifier-scales", 1, "--rows", 2, "--classifier", noisy]
    measured[measured.index(8)] = 12  # precision and recall need more than fid
    table = run("compare", text, *measured, *scales, "--output-dir", tmp_path / "compared")
    assert {"unconditional", "none", "cfg", "classifier", "cfg+classifier"} <= set(table.split())
    files = {path.name for path in (tmp_path / "compared").iterdir() if path.is_file()}
    figures = {name for name in files if name.startswith("quality-") and name.endswith(".png")}
    assert "quality-cost.png" in figures and files - figures == {
        *(f"comparison.{kind}" for kind in ("csv", "json", "png", "txt")), "plan.json", "report.html",
    }  # fmt: skip


def test_as_a_module_and_a_mistake_in_a_fresh_process(models, tmp_path):
    module = (sys.executable, "-m", "ldm")
    outcome = installed("train", "autoencoder", "--data", "shapse", "--output-dir", tmp_path / "run", command=module)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert outcome.stderr.startswith('ldm: --data "shapse": neither') and outcome.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_installed_command_stopped_and_started_again(models, ldm, tmp_path, number):
    """As a user does it: Ctrl-C (or kill -9) somewhere, then the same command."""
    command = models.command("classifier", tmp_path / "run", "--checkpointing-steps", 2, steps=40)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(LDM), *command], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 900
    while not list((tmp_path / "run").glob("checkpoint-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    error = process.communicate()[1].decode()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert re.search(r"^ldm: stopped at step \d+; the same command goes on from there$", error, re.MULTILINE)
    else:
        assert process.returncode == -signal.SIGKILL
    assert ldm(*command).code == 0
    assert ldm(*models.command("classifier", tmp_path / "whole", steps=40)).code == 0
    for file in ("model", "ema", "optimizer"):
        name = f"checkpoint-40/{file}.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
