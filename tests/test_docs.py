"""Every line of README and docs works as it stands: commands and Python are extracted and run on tiny models.

The folders that the pages name are prepared in a temporary folder. To a command the test adds only what makes it small.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETUP = ("git clone REPOSITORY guided-latents && cd guided-latents", "python3 -m venv .venv && .venv/bin/pip install ")
PLUG_INS = "my_package"  # the example of an entry point, which tests/ldm/test_contributing.py installs


def shell_lines():
    """(page, number, line) of each command: the indented or fenced lines that are no Python or TOML."""
    for page in PAGES:
        fence = ""
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                fence = "" if fence else line[3:] or "text"
            elif line.startswith("    ") and not fence and line.strip():
                yield page.name, number, line.strip()


COMMANDS = [entry for entry in shell_lines() if entry[2].startswith("ldm ")]
OTHERS = [entry for entry in shell_lines() if not entry[2].startswith("ldm ")]
PYTHON = [
    (page.name, match[1])
    for page in PAGES
    for match in re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
]


def words_of(line):
    """The commands of a line, without the comment and what is sent to another program."""
    words, commands = shlex.split(line, comments=True), [[]]
    for word in words:
        commands.append([]) if word == "&&" else commands[-1].append(word)
    return commands


def name(entry):
    return f"{entry[0]}:{entry[1]}"


@pytest.mark.parametrize("entry", COMMANDS, ids=name)
def test_no_command_has_a_placeholder(entry):
    for words in words_of(entry[2]):
        assert not [word for word in words if word == "..." or re.fullmatch(r"[A-Z]{2,}\w*(/.*)?|[A-Z]", word)]


def test_what_is_no_command_of_ours_is_known():
    toml = [entry for entry in OTHERS if PLUG_INS in entry[2] or entry[2].startswith("[project.entry-points")]
    assert [entry[2] for entry in OTHERS if entry not in toml and not entry[2].startswith(SETUP)] == []


@pytest.fixture(scope="module")
def workplace(models, tmp_path_factory):
    """A folder with all that the pages name, made of tiny models."""
    from ldm.cli.main import main

    root = tmp_path_factory.mktemp("docs")
    runs = root / "runs"
    folders = {
        "quickstart/model": models.text, "quickstart/diffusion": models.text, "ae": models.autoencoder,
        "model": models.classes, "classifier": models.classifier, "other": models.classifier,
    }  # fmt: skip
    for target, source in folders.items():
        shutil.copytree(source, runs / target)
    for run in ("model", "quickstart/diffusion"):  # a snapshot of an earlier step
        (newest,) = (runs / run).glob("checkpoint-*")
        shutil.copytree(newest, runs / run / "checkpoint-1000")
    for number in range(24):  # two classes
        path = root / "images" / ("circle", "square")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (10 * number, 99, 60)).save(path)
    (root / "guided.yaml").write_text('sampling: {guidance: ["cfg(3)", "pag(2)"]}\n')
    image = Image.new("RGB", (20, 16), (200, 30, 60))
    image.save(root / "photo.png")
    Image.new("L", (20, 16), 0).save(root / "mask.png")
    with Image.open(root / "mask.png") as mask:
        mask.paste(255, (4, 4, 10, 12))
        mask.save(root / "mask.png")
    before = Path.cwd()
    os.chdir(root)
    try:
        few = ["--num-images", "4", "--num-inference-steps", "2", "--device", "cpu"]
        assert main(["sample", "runs/model", *few]) == 0  # samples/model-1, of which one page makes an image again
        yield root
    finally:
        os.chdir(before)


LITTLE = ["--num-images", "2", "--num-inference-steps", "2", "--batch-size", "2", "--device", "cpu"]
SHAPES = ["--image-size", "16", "--shapes-train", "64", "--shapes-validation", "32"]
FEW = ["--num-images", "8", "--num-reference", "16", "--bootstrap", "0", "--extractor", "trained", "--device", "cpu"]
NETWORK = [
    "--block-out-channels", "8", "16", "--attention", "False", "True", "--attention-head-dim", "8",
    "--norm-num-groups", "4", "--layers-per-block", "1", "--learning-rate", "1e-3",
]  # fmt: skip
TRAINED = [
    *SHAPES, "--max-train-steps", "4", "--train-batch-size", "4", "--lr-warmup-steps", "0", "--validation-images", "8",
    "--validation-steps", "0", "--checkpointing-steps", "1000", "--optimizer", "adamw", "--device", "cpu",
]  # fmt: skip
PREVIEWS = ["--preview-images", "0", "--eval-num-images", "4", "--eval-num-reference", "8"]
SMALL = {  # what is added to a command
    "sample": LITTLE,
    "evaluate": [*FEW, "--num-inference-steps", "2", *SHAPES],
    "compare": [*FEW, "--num-inference-steps", "2", "--rows", "2", *SHAPES],
    "autoencoder": [
        *TRAINED, "--block-out-channels", "8", "8", "--norm-num-groups", "4", "--no-attention",
        "--latent-channels", "4", "--layers-per-block", "1", "--calibration-images", "16", "--num-codes", "16",
    ],
    "diffusion": [*TRAINED, *NETWORK, *PREVIEWS],
    "classifier": [*TRAINED, *NETWORK],
    "prior": [*TRAINED, "--preview-images", "0"],
}  # fmt: skip
CLASSES = {"dog": "circle", "cat": "square"}  # those of the tiny models
FAST = ("sample", "list", "info", "report")
LATER = {"runs/pixels", "runs/prior"}  # what a slow command makes


def run(entry, ldm):
    for words in words_of(entry[2]):
        command = words[2] if words[1] == "train" else words[1]
        small = SMALL.get(command, [])
        if "--interpolate-prompt" in words or "--recreate" in words:
            small = small[2:]
        if command == "sample" and "runs/ae" in words:  # without diffusion, so without steps
            small = [*small[:2], *small[4:]]
        found = ldm(*[CLASSES.get(word, word) for word in words[1:]], *small)
        assert found.code == 0, f"{entry[2]}\n{found.err}"


def is_fast(entry):
    return all(words[1] in FAST and not LATER & set(words) for words in words_of(entry[2])) and "mine(" not in entry[2]


@pytest.mark.parametrize("entry", [entry for entry in COMMANDS if is_fast(entry)], ids=name)
def test_a_command_runs_as_it_stands(entry, workplace, ldm):
    run(entry, ldm)


@pytest.mark.parametrize("block", PYTHON[:1], ids=["README.md"])
def test_python_runs_as_it_stands(block, workplace, capsys):
    exec(compile(block[1], block[0], "exec"), {})
    assert "network evaluations" in capsys.readouterr().out
