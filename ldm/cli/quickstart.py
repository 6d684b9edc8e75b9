"""`ldm quickstart`: training, sampling, evaluation and comparison on built-in data, in minutes on two CPU cores."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.parsing import parse
from ldm.cli.quickstart_folder import REPORT, RESULT, RUNS, UNFINISHED, check_folder, finished_result, read_object
from ldm.runtime.errors import at_least
from ldm.runtime.files import atomic_write, atomic_write_json
from ldm.runtime.locks import FolderLock
from ldm.runtime.settings import find_config, read_settings
from ldm.runtime.stopping import GOES_ON, kept_when_stopped
from ldm.runtime.text import counted

if TYPE_CHECKING:
    from ldm.cli.quickstart_rows import Row

_METHODS = ("none", "cfg", "cfg(7.5, interval=[0.3, 5])", "classifier")
_METRICS = ("fid", "precision", "recall")
_COMPARED = 96  # samples of each method


@dataclass(frozen=True)
class QuickstartRun:
    """Train an autoencoder, a text-conditional U-Net and a noisy classifier on `shapes`; sample, evaluate the samples,
    and compare guidance methods. All of it is shown on one page, report.html. The same command goes on where it was
    stopped."""

    output_dir: str = "runs/quickstart"
    """Folder for everything: new, empty, or that of an earlier quick start, of which nothing finished is done again."""
    num_images: int = 256
    """Samples for each row of the table."""
    num_inference_steps: int = 25
    """Sampling steps."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def run(arguments: list[str]) -> None:
    """Train, sample, evaluate, compare; print the table and the paths of the images."""
    settings = parse(QuickstartRun, arguments, "quickstart")
    at_least(settings, num_images=1, num_inference_steps=1)
    root = Path(settings.output_dir)
    check_folder(root)
    if (result := finished_result(root, settings.num_images, settings.num_inference_steps)) is None:
        with FolderLock(root, work="running a quick start"), kept_when_stopped(lambda: f"stopped; {GOES_ON}"):
            result = _run_all(root, settings, shlex.join(["ldm", "quickstart", *arguments]))
    _print_summary(root, result)


def _run_all(root: Path, settings: QuickstartRun, command: str) -> dict[str, Any]:
    """All stages, those that are finished excepted; quickstart.json is written last."""
    stages = Stages(root, settings, command)
    metrics = _train_all(root, settings.device, stages)
    rows, judge = _sample_all(root, settings, stages)
    _compare(root, settings, stages)
    result = {
        **stages.record,
        "reconstruction_psnr_db": metrics["autoencoder"]["psnr"],
        "reconstruction_ssim": metrics["autoencoder"]["ssim"],
        "rows": [asdict(row) for row in rows],
        **judge,
        "classifier_accuracy_by_noise": metrics["classifier"]["accuracy_by_noise"],
        "seconds": stages.seconds,
        "cpus": os.cpu_count(),
    }
    from ldm.comparison.quickstart_report import render_quickstart

    atomic_write(root / REPORT, render_quickstart(root, result))
    atomic_write_json(root / RESULT, result)
    (root / UNFINISHED).unlink(missing_ok=True)
    return result


class Stages:
    """The parts of the work, each named before it begins; how long each took, over all starts, is kept in the folder
    until the quick start is done."""

    def __init__(self, root: Path, settings: QuickstartRun, command: str) -> None:
        self.root = root
        self.record = {"kind": "quickstart", "command": command, "settings": asdict(settings)}
        seconds = read_object(root / UNFINISHED).get("seconds")
        self.seconds: dict[str, float] = dict(seconds) if isinstance(seconds, dict) else {}
        self._save()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print the name, and keep how long the block took."""
        print(f"== {name}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
        self._save()

    def _save(self) -> None:
        atomic_write_json(self.root / UNFINISHED, {**self.record, "seconds": self.seconds})


def _train_all(root: Path, device: str, stages: Stages) -> dict[str, dict[str, Any]]:
    """The three trainings and the latents, each resumed or skipped if it is done; the last metrics."""
    from ldm.cli.encode import run as encode
    from ldm.cli.train import train_with

    latents = root / "latents"
    sources = {"diffusion": root / "autoencoder", "classifier": root / "diffusion"}  # of their autoencoder
    metrics = {}
    for kind in RUNS:
        settings = _settings(kind)
        changes: dict[str, Any] = {"training": replace(settings.training, output_dir=str(root / kind), device=device)}
        flags = ["--config", f"quickstart/{kind}", "--output-dir", str(root / kind), "--device", device]
        if kind in sources:
            changes |= {"autoencoder": str(sources[kind]), "latents": str(latents)}
            flags += ["--autoencoder", str(sources[kind]), "--latents", str(latents)]
        command = shlex.join(["ldm", "train", kind, *flags])
        with stages.stage(command):
            metrics[kind] = train_with(kind, replace(settings, **changes), command)
        if kind == "autoencoder":
            flags = ["--autoencoder", str(root / kind), "--output-dir", str(latents), *_data_flags(kind)]
            flags += ["--device", device]
            with stages.stage(shlex.join(["ldm", "encode", *flags])):
                encode(flags)
    return metrics


def _sample_all(root: Path, settings: QuickstartRun, stages: Stages) -> tuple[list[Row], dict[str, Any]]:
    from ldm.cli.quickstart_rows import row_of, setups
    from ldm.data.open import open_data
    from ldm.evaluation.features.judge import trained_judge
    from ldm.runtime.device import resolve_device
    from ldm.sampling.identity import identity_of
    from ldm.sampling.pipeline import Pipeline

    device = resolve_device(settings.device)
    dataset = _settings("diffusion").dataset
    train, held_out = open_data(dataset, "train"), open_data(dataset, "validation")
    with stages.stage("train the judge of the samples (a small network on real shapes)"):
        judge = trained_judge(train, device=device)
    assert judge is not None, "shapes have attributes"
    if not (root / "model").is_dir():
        Pipeline.load(root / "diffusion", device=device, classifier=root / "classifier").save(root / "model")
    pipeline = Pipeline.load(root / "model", device=device)
    model, rows = identity_of(pipeline, root / "model", None), []
    for setup in setups(held_out, settings.num_images, settings.num_inference_steps):
        with stages.stage(f"sample: {setup.title}"):
            rows.append(row_of(setup, root, pipeline, model, judge))
    return rows, {"judge": judge.name, "judge_accuracy_on_held_out_shapes": dict(judge.accuracy)}


def _compare(root: Path, settings: QuickstartRun, stages: Stages) -> None:
    """A small comparison of guidance methods, continued or read if it is done."""
    from ldm.cli.compare import run as compare

    flags = [str(root / "model"), *_data_flags("diffusion"), "--output-dir", str(root / "comparison")]
    flags += ["--methods", *_METHODS, "--metrics", *_METRICS, "--num-images", str(_COMPARED)]
    flags += ["--num-inference-steps", str(settings.num_inference_steps), "--device", settings.device]
    with stages.stage(shlex.join(["ldm", "compare", *flags])):
        compare(flags)


def _data_flags(kind: str) -> list[str]:
    """The data set of a training, as flags."""
    data = _settings(kind).dataset
    flags = ["--data", data.data, "--image-size", data.image_size]
    flags += ["--shapes-train", data.shapes_train, "--shapes-validation", data.shapes_validation]
    return list(map(str, flags))


def _settings(kind: str) -> Any:
    from ldm.cli.train import _schema

    return read_settings(_schema(kind), find_config(f"quickstart/{kind}"))


def _print_summary(root: Path, result: Mapping[str, Any]) -> None:
    from ldm.cli.quickstart_rows import Row

    settings, accuracy = result["settings"], result["judge_accuracy_on_held_out_shapes"]
    psnr, ssim = result["reconstruction_psnr_db"], result["reconstruction_ssim"]
    print(f"\nreconstruction of held-out images: {psnr:.1f} dB PSNR, {ssim:.3f} SSIM")
    print("judge on held-out shapes: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))
    steps = counted(settings["num_inference_steps"], "DDIM step", "DDIM steps")
    print(f"{counted(settings['num_images'], 'sample')} a row, {steps}; share of samples with")
    print("the expected attributes:\n")
    print(f"{'':<46}{'shape':>8}{'colour':>8}{'backgr.':>8}{'is red':>8}{'evaluations':>13}")
    for row in (Row(**row) for row in result["rows"]):
        shares = (row.shape, row.colour, row.background, row.red)
        percents = "".join(f"{'-' if value is None else f'{value:.1%}':>8}" for value in shares)
        print(f"{row.title:<46}{percents}{row.evaluations:>13}")
    print(f"\nreport: {root / REPORT}    images: {root / 'pictures'}    metrics: {root / RESULT}")
    print(f'next: ldm sample {root / "model"} --prompt "a small blue star" --guidance-scale 7.5 --output-dir out')
