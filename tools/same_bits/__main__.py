"""The numbers of every command on tiny models, before and after a change that should leave all bits as they were.

    python -m tools.same_bits --work FOLDER --json before.json    # about 3 minutes on one core; FOLDER is emptied first
    python -m tools.same_bits --work FOLDER --json after.json
    python -m tools.same_bits --compare before.json after.json    # names what differs; exit code 1 if anything does

It uses the command line alone (`ldm.cli.main.main`), so modules may move. The numbers hold for one machine and
one set of versions.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from safetensors.torch import load_file

from tools.same_bits.cases import (
    AUTOENCODER,
    AUTOENCODER_METRICS,
    BOTTLENECKS,
    FEW,
    GUIDANCES,
    METRICS,
    OTHER_SETTINGS,
    PROMPTS,
    SECOND,
    SOLVERS,
    TRAININGS,
)

UNSTABLE = re.compile(r"second|memory|version|time$")  # keys of what differs between equal runs


class Recorder:
    """Runs commands in the current folder and records their numbers by name."""

    def __init__(self, log: IO[str]) -> None:
        self.numbers: dict[str, Any] = {}
        self._log = log

    def ldm(self, command: str) -> str:
        """The output of a command, which must succeed."""
        from ldm.cli.main import main

        self._log.write(f"$ ldm {command}\n")
        start = self._log.tell()
        with contextlib.redirect_stdout(self._log), contextlib.redirect_stderr(self._log):
            code = main(shlex.split(command))
        self._log.flush()
        printed = Path(self._log.name).read_bytes()[start:].decode()
        if code:
            sys.exit(f"ldm {command}: exit code {code}\n{printed[-2000:]}")
        return printed

    def train(self, name: str, command: str) -> None:
        """Losses of every step, and the tensors of what is published."""
        self.ldm(f"train {command} --output-dir {name}")
        self.numbers[f"train {name}"] = {"metrics": metrics(Path(name)), "tensors": tensors(Path(name))}

    def sample(self, model: str, name: str, flags: str = "") -> None:
        """The pixels of every image, and the number of network evaluations. Of two equal flags the later is used."""
        folder = f"images/{model}/{re.sub('[^a-z0-9_]+', '-', name)}"
        plain = "--num-images 4 --batch-size 4 --seed 3 --device cpu"
        printed = self.ldm(f"sample {model} {plain} {flags} --output-dir {folder}")
        calls = re.findall(r"([\d,]+) network evaluation", printed)
        self.numbers[f"sample {model}: {name}"] = {"calls": calls, "pixels": pixel_hashes(Path(folder))}

    def evaluate(self, name: str, flags: str, command: str = "evaluate") -> None:
        """All values of an evaluation or a comparison."""
        file, flag, target = {
            "evaluate": (f"{name}.json", "--output", f"{name}.json"),
            "compare": (f"{name}/comparison.json", "--output-dir", name),
            "compare autoencoders": (f"{name}/autoencoders.json", "--output-dir", name),
        }[command]
        self.ldm(f"{command} {flags} {flag} {target}")
        self.numbers[f"{command}: {name}"] = stable(json.loads(Path(file).read_text()))


def train_all(recorder: Recorder) -> None:
    """Every kind of training, and every bottleneck; the published weights of another averaging length."""
    for name, command in TRAININGS.items():
        recorder.train(name, command)
    for name, flags in BOTTLENECKS.items():
        recorder.train(f"ae-{name}", f"{AUTOENCODER} --bottleneck {name} {flags} --max-train-steps 3")
    recorder.ldm("ema classes --length 0.08 --output-dir ema")
    recorder.numbers["ema"] = tensors(Path("ema"))


def sample_all(recorder: Recorder) -> None:
    """Every guidance, every sampler and every edit, and models that sample without diffusion."""
    Path("mask.pgm").write_bytes(b"P5 16 16 255\n" + bytes(8 * [0] + 8 * [255]) * 16)
    steps = "--num-inference-steps 8"
    recorder.sample("text", "none", f"{PROMPTS} {steps}")
    if missing := set(names_of(recorder.ldm("list guidances"))) - {key.split()[0] for key in GUIDANCES}:
        sys.exit(f"no example of the guidances {', '.join(sorted(missing))}")
    solvers = {
        f"{name} with cfg": f"--sampler {name} --guidance cfg(3)" for name in names_of(recorder.ldm("list samplers"))
    }
    for name, flags in {**GUIDANCES, **OTHER_SETTINGS, **solvers}.items():
        recorder.sample("text", name, f"{PROMPTS} {steps} {flags}")
    recorder.sample("text", "again", "--recreate images/text/pag/000001.png")
    recorder.sample("text", "inversion", f"--prompt 'a circle' {steps} --invert {SECOND} --source-prompt 'a star'")
    recorder.sample("text", "between seeds", f"--prompt 'a star' {steps} --interpolate-seed 7")
    recorder.sample("text", "between prompts", f"--prompt 'a star' {steps} --interpolate-prompt 'a red circle'")
    for name in SOLVERS:
        recorder.sample("classes", name, f"{steps} --sampler {name} --guidance-scale 3")
        recorder.sample("pixels", name, f"{steps} --sampler {name} --guidance-scale 3 {PROMPTS}")
    recorder.sample("classes", "negative class", f"{steps} --class-label 1 --negative-class 2 --guidance-scale 4")
    recorder.sample("ema", "ddim", steps)
    recorder.sample("prior", "guided", "--guidance-scale 2 --top-k 8 --top-p 0.9 --temperature 0.9")
    recorder.sample("prior_text", "guided", f"{PROMPTS} --guidance-scale 3 --negative-prompt 'a blue square'")
    for model in ("prior", "gan", "kl", "ae-bn", "ae-vmf", "ae-nvae"):
        recorder.sample(model, "plain")


def evaluate_all(recorder: Recorder) -> None:
    """Every metric that needs no download, of models, autoencoders, priors and folders; comparisons; caches."""
    steps = "--num-inference-steps 4"
    likelihood = "--likelihood-images 4 --bound-steps 6 --flow-steps 4 --flow-probes 1"
    more = f"inception_score memorisation calibration bits_per_dim {likelihood} --guidance-scale 3"
    recorder.evaluate("text", f"text {FEW} {steps} --metrics {METRICS} {more} --classifier=classifier")
    recorder.evaluate("classes", f"classes {FEW} {steps} --metrics fid diversity")
    recorder.evaluate("prior", f"prior {FEW} --metrics fid bits_per_code")
    for name, metrics_of in AUTOENCODER_METRICS.items():
        recorder.evaluate(name, f"{name} --num-images 24 --device cpu --metrics {metrics_of}")
    for model in ("text", "classes"):
        recorder.sample(
            model, "two dozen", f"--num-images 24 {steps} --batch-size 24 {PROMPTS if model == 'text' else ''}"
        )
        Path(f"images/{model}/two-dozen/grid.png").unlink()
    real, fake = "images/text/two-dozen", "images/classes/two-dozen"
    recorder.evaluate("folders", f"--real {real} --fake {fake} --metrics {METRICS} --bootstrap 8 --device cpu")
    methods = "--methods none cfg(4) pag(3) 'cfg(4) + rescale(0.7)' --samplers ddim dpmpp_2m"
    for name, rounds in {"grid": "", "halving": "--rounds 2"}.items():
        recorder.evaluate(name, f"text {methods} {FEW} {steps} {rounds}", "compare")
    recorder.evaluate("coders", "kl vq --num-images 24 --device cpu", "compare autoencoders")
    recorder.ldm(f"encode --data {real} --image-size 16 --flip --autoencoder kl --device cpu --output-dir encoded")
    recorder.numbers["caches"] = {name: tensors(Path(name)) for name in ("encoded", "latents", "codes")}


def names_of(table: str) -> list[str]:
    """The first column of `ldm list`, without its head."""
    return [line.split()[0] for line in table.splitlines()[1:]]


def tensors(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor below a folder, by file and key, but for those of checkpoints."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("checkpoint-"):
            hashes |= {f"{name}: {key}": digest(value) for key, value in sorted(load_file(path).items())}
    return hashes


def digest(value: torch.Tensor) -> str:
    """SHA-256 of type, shape and bits."""
    head = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(head + value.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def metrics(folder: Path) -> list[Any]:
    """All lines of metrics.jsonl, without times."""
    path = folder / "metrics.jsonl"
    return [stable(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def stable(value: Any) -> Any:
    """Figures without times, memory and versions."""
    if isinstance(value, Mapping):
        return {key: stable(item) for key, item in value.items() if not UNSTABLE.search(key)}
    return [stable(item) for item in value] if isinstance(value, list) else value


def pixel_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of size and pixels of each PNG in a folder."""
    return {path.name: hashlib.sha256(pixels(path)).hexdigest() for path in sorted(folder.glob("*.png"))}


def pixels(path: Path) -> bytes:
    """Size and pixels of an image."""
    with Image.open(path) as image:
        return struct.pack(">II", *image.size) + image.convert("RGB").tobytes()


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by the path to each."""
    if not isinstance(value, dict | list) or not value:
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, item in items for path, leaf in flat(item, f"{name}/{key}").items()}


def compare(old: Path, new: Path) -> int:
    """Print each key that differs or that one file lacks; 1 if there is any."""
    before, after = (flat(json.loads(path.read_text())) for path in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    differing = [key for key in keys if before.get(key, "absent") != after.get(key, "absent")]
    for key in differing:
        print(f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}")
    print(f"{len(differing)} of {len(keys)} numbers differ")
    return int(bool(differing))


def make(work: Path, output: Path) -> int:
    """All models and numbers anew."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.chdir(work)
    os.environ |= {"LDM_CACHE": "cache", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    torch.set_num_threads(1)
    with open("log.txt", "w") as log:
        recorder = Recorder(log)
        for section in (train_all, sample_all, evaluate_all):
            start = time.monotonic()
            section(recorder)
            print(f"{section.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    output.write_text(json.dumps(recorder.numbers, indent=1) + "\n")
    print(f"wrote {output}: {len(flat(recorder.numbers))} numbers")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the numbers, or compare two files of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for models and images, emptied first")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="files to compare")
    given = parser.parse_args(arguments)
    if given.compare:
        return compare(*given.compare)
    if not (given.work and given.json):
        parser.error("give --work and --json, or --compare")
    return make(given.work.resolve(), given.json.resolve())


if __name__ == "__main__":
    sys.exit(main())
