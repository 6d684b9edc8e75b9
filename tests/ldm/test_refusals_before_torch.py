"""Wrong flags are refused before torch is imported, which takes seconds: here it cannot be imported at all."""

import json
import subprocess
import sys
import time

import pytest

OUT = ["--output-dir", "new"]
TRAIN = ["train", "diffusion", *OUT, "--autoencoder", "identity"]
SAMPLE = ["sample", "empty", *OUT]
CASES = {  # a word of the message: the command
    "unknown command": ["evalute", "empty"],
    "cannot train 'painter'": ["train", "painter"],
    "--nope": ["train", "diffusion", "--nope", "1"],
    "could not convert string to float: 'fast'": [*TRAIN, "--learning-rate", "fast"],
    "--autoencoder is missing": ["train", "classifier", *OUT],
    "--max-train-steps: expected above 0": [*TRAIN, "--max-train-steps", "0"],
    "--beta-start": [*TRAIN, "--beta-start", "2"],
    "--ema-decay": ["train", "autoencoder", *OUT, "--ema-decay", "2"],
    "--lr-end": [*TRAIN, "--lr-scheduler", "polynomial", "--lr-end", "1"],
    "divisible by norm_num_groups": [*TRAIN, "--block-out-channels", "7", "8", "9"],
    "--device tpu": [*TRAIN, "--device", "tpu"],
    "pure noise": [*TRAIN, "--rescale-betas-zero-snr", "--prediction-type", "epsilon"],
    "--p2-gamma and --snr-gamma": [*TRAIN, "--p2-gamma", "1", "--snr-gamma", "5"],
    "--output-dir full: holds something else": [*TRAIN[:2], "--output-dir", "full", "--autoencoder", "identity"],
    "'wrong'": ["train", "autoencoder", *OUT, "--bottleneck", "wrong"],
    "--objective": ["train", "gan", *OUT, "--objective", "x"],
    "--kind": ["train", "prior", *OUT, "--autoencoder", "empty", "--kind", "x"],
    "no-such-config": [*TRAIN, "--config", "no-such-config"],
    "give the output folder of `ldm train autoencoder`": ["encode"],
    "--batch-size": ["encode", "--autoencoder", "empty", *OUT, "--batch-size", "0"],
    "MODEL is missing": ["sample"],
    "missing: no such folder": ["sample", "missing", *OUT],
    "--output-dir full: holds": ["sample", "empty", "--output-dir", "full"],
    "--num-images": [*SAMPLE, "--num-images", "0"],
    "there is no sampler 'ddin'": [*SAMPLE, "--sampler", "ddin"],
    "ddim has no option 'beta'": [*SAMPLE, "--sampler", "ddim(beta=1)"],
    "there is no guidance 'cgf'": [*SAMPLE, "--guidance", "cgf(2)"],
    "not negative": [*SAMPLE, "--guidance", "cfg(-2)"],
    "--spacing": [*SAMPLE, "--spacing", "x"],
    "--strength": [*SAMPLE, "--init-image", "x.png", "--strength", "2"],
    "--mask": [*SAMPLE, "--mask", "x.png"],
    "--device gpu": [*SAMPLE, "--device", "gpu"],
    "no such folder; give a model folder": ["evaluate", "missing"],
    "--metrics": ["evaluate", "empty", "--metrics", "nope"],
    "two folders are compared": ["evaluate", "--real", "empty"],
    "--resize": ["evaluate", "--real", "empty", "--fake", "empty", "--resize", "0"],
    "no sampler 'x'": ["evaluate", "--fake", "empty", "--real", "empty", "--sampler", "x"],
    "nope": ["compare", "empty", *OUT, "--methods", "nope(3)"],
    "FILE is missing": ["compare", "results"],
    "RUN is missing": ["compare", "autoencoders"],
    "--length 2": ["ema", "empty", *OUT, "--length", "2"],
    "missing/run: no such folder": ["info", "missing/run"],
    "cannot list 'wrong'": ["list", "wrong"],
    "--num-images: expected 1": ["quickstart", "--num-images", "0"],
}
PROGRAM = """
import contextlib, io, json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is imported")
sys.meta_path.insert(0, NoTorch())
from ldm.cli.main import main
found = {}
for word, arguments in json.load(sys.stdin).items():
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            code = main(arguments)
        except ImportError as error:
            code = str(error)
    found[word] = [code, printed.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(CASES), capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - started < 60, "for all of them; one takes a second"
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "full"], "nothing was made"
    return json.loads(run.stdout)


@pytest.mark.parametrize("word", CASES)
def test_a_wrong_flag_is_refused_without_torch(refusals, word):
    code, message = refusals[word]
    assert code == 2, f"{code}: {message}"
    assert word in message and message.count("\n") == 1


def test_the_help_begins_with_what_must_be_given():
    run = [sys.executable, "-c", PROGRAM.split("found")[0] + "main(['train', 'diffusion', '--help'])"]
    text = " ".join(subprocess.run(run, capture_output=True, text=True).stdout.replace("│", " ").split())
    assert "--autoencoder must be given." in text
