"""`ldm quickstart`: the whole path on built-in data, small enough for two CPU cores and some minutes."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.cli.parsing import parse
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.settings import find_config, read_settings

_SEED = 1


@dataclass(frozen=True)
class QuickstartRun:
    """Train an autoencoder, a text-conditional U-Net and a noisy classifier on `shapes`, sample, evaluate, compare."""

    output_dir: str = "runs/quickstart"
    """Folder for everything; the same command goes on where an interrupted one stopped."""
    num_images: int = 256
    """Samples drawn for each row of the table."""
    num_inference_steps: int = 25
    """Sampling steps."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


@dataclass(frozen=True)
class Row:
    """One way of sampling and what a judge saw in its pictures; shares in [0, 1], None where nothing was asked."""

    title: str
    file: str
    shape: float | None
    colour: float | None
    background: float | None
    red: float
    evaluations: int


def run(arguments: list[str]) -> None:
    """Train, sample, judge; print the table and the paths of the pictures."""
    settings = parse(QuickstartRun, arguments, "quickstart")
    if settings.num_images < 1:
        raise UserError(f"--num-images must be above 0, got {settings.num_images}")
    root = Path(settings.output_dir)
    _check_folder(root)
    times: dict[str, float] = {}
    measures = _train_all(root, settings.device, times)
    rows, judged = _sample_all(root, settings, times)
    _report(root, settings, measures, rows, judged, times)


def _check_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"--output-dir {root}: is a file; give a new or empty folder")
    if root.is_dir() and any(root.iterdir()) and not (root / "quickstart.json").is_file():
        raise UserError(f"--output-dir {root}: holds something else; give a new or empty folder")
    atomic_write_json(root / "quickstart.json", {"kind": "quickstart"})


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    print(f"== {name}", flush=True)
    start = time.monotonic()
    yield
    times[name] = round(time.monotonic() - start, 1)


def _train_all(root: Path, device: str, times: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The three trainings, each resumed or skipped as far as it went before."""
    from ldm.cli.encode import run as encode
    from ldm.cli.train import _schema, train_with

    folders = {"autoencoder": root / "autoencoder", "latents": root / "latents"}
    measures = {}
    for kind in ("autoencoder", "diffusion", "classifier"):
        settings = read_settings(_schema(kind), find_config(f"quickstart/{kind}"))
        training = dataclasses.replace(settings.training, output_dir=str(root / kind), device=device)
        changes: dict[str, Any] = {"training": training}
        if kind != "autoencoder":
            source = folders["autoencoder"] if kind == "diffusion" else root / "diffusion"
            changes |= {"autoencoder": str(source), "latents": str(folders["latents"])}
        with _timed(times, f"ldm train {kind} --config quickstart/{kind} --output-dir {root / kind}"):
            measures[kind] = train_with(kind, dataclasses.replace(settings, **changes))
        if kind == "autoencoder":
            with _timed(times, f"ldm encode --autoencoder {root / kind} --output-dir {folders['latents']}"):
                data = settings.dataset
                flags = ["--shapes-train", str(data.shapes_train), "--image-size", str(data.image_size)]
                places = ["--autoencoder", str(root / kind), "--output-dir", str(folders["latents"])]
                encode([*places, *flags, "--data", data.data, "--device", device])
    return measures


def _sample_all(root: Path, settings: QuickstartRun, times: dict[str, float]) -> tuple[list[Row], dict[str, Any]]:
    from ldm.cli.train import _schema
    from ldm.data import open_data
    from ldm.evaluation.features.judge import trained_judge
    from ldm.runtime.device import resolve_device
    from ldm.sampling.config import Request, SamplingConfig
    from ldm.sampling.pipeline import Pipeline

    device = resolve_device(settings.device)
    data = read_settings(_schema("diffusion"), find_config("quickstart/diffusion")).dataset
    train, held_out = open_data(data, "train"), open_data(data, "validation")
    with _timed(times, "train the judge of the pictures (a small network on real shapes)"):
        judge = trained_judge(train, device=device)
    assert judge is not None, "shapes have attributes"
    pipeline = Pipeline.load(root / "diffusion", device=device, classifier=root / "classifier")
    if not (root / "model").is_dir():
        pipeline.save(root / "model")
    count = settings.num_images
    asked = [held_out.attributes(index % len(held_out)) for index in range(count)]
    described = [Request(prompt=held_out.captions(index % len(held_out))[0]) for index in range(count)]
    circles = [Request(prompt="a large circle")] * count
    unlike_red = [Request(prompt="a large circle", negative_prompt="red")] * count
    names = train.class_names
    classes = [Request(class_label=number % len(names)) for number in range(count)]
    shapes = [{"shape": names[number % len(names)]} for number in range(count)]
    steps = settings.num_inference_steps

    def sampling(scale: float, classifier: float = 0.0) -> SamplingConfig:
        return SamplingConfig(num_inference_steps=steps, guidance_scale=scale, classifier_scale=classifier)

    circle = [{"shape": "circle"}] * count
    plan = [
        ("full captions, --guidance-scale 1", "captions-scale-1", described, sampling(1.0), asked),
        ("full captions, --guidance-scale 7.5", "captions-scale-7.5", described, sampling(7.5), asked),
        ("'a large circle', 1", "large-circle-scale-1", circles, sampling(1.0), circle),
        ("'a large circle', 7.5", "large-circle", circles, sampling(7.5), circle),
        ("'a large circle', 7.5, --negative-prompt red", "large-circle-not-red", unlike_red, sampling(7.5), circle),
        ("no guidance, no prompt", "unconditional", [Request()] * count, sampling(0.0), shapes),
        ("--classifier-scale 15 alone, no prompt", "classifier", classes, sampling(0.0, 15.0), shapes),
    ]
    rows, files = [], root / "pictures"
    for title, file, requests, config, wanted in plan:
        with _timed(times, f"sample: {title}"):
            images = _drawn(pipeline, requests, config, files / file, root / "model")
            rows.append(_judged(judge, images, wanted, title, file, pipeline.evaluations))
    return rows, {"judge": judge.name, "judge_accuracy_on_held_out_shapes": dict(judge.accuracy)}


def _drawn(pipeline: Any, requests: list[Any], config: Any, folder: Path, model: Path) -> Tensor:
    """Sample, write the pictures, and return them (N, 3, H, W)."""
    from ldm.cli.outputs import write_samples
    from ldm.runtime.progress import progress

    drawn: list[Tensor] = []

    def keep(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            drawn.append(batch)
            yield batch

    batches = pipeline.generate(requests, config, seed=_SEED, batch_size=64)
    facts = {"model": str(model), "classifier": "", "seed": _SEED, "first_index": 0}
    write_samples(folder, keep(progress(batches, "batches", total=-(-len(requests) // 64))), requests, config, facts)
    return torch.cat(drawn)


def _judged(judge: Any, images: Tensor, asked: list[dict[str, Any]], title: str, file: str, evaluations: int) -> Row:
    seen = judge(images)

    def share(name: str) -> float | None:
        pairs = [(s[name], str(a[name])) for s, a in zip(seen, asked, strict=True) if name in a]
        return sum(s == a for s, a in pairs) / len(pairs) if pairs else None

    red = sum(each["colour"] == "red" for each in seen) / len(seen)
    return Row(title, file, share("shape"), share("colour"), share("background"), red, evaluations // len(images))


def _report(
    root: Path,
    settings: QuickstartRun,
    measures: dict[str, dict[str, Any]],
    rows: list[Row],
    judged: dict[str, Any],
    times: dict[str, float],
) -> None:
    psnr = measures["autoencoder"]["psnr"]
    result = {
        "kind": "quickstart",
        "settings": dataclasses.asdict(settings),
        "reconstruction_psnr_db": psnr,
        "rows": [dataclasses.asdict(row) for row in rows],
        **judged,
        "classifier_accuracy_by_noise": measures["classifier"]["accuracy_by_noise"],
        "seconds": times,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    atomic_write_json(root / "quickstart.json", {**read_json(root / "quickstart.json"), **result})
    accuracy = judged["judge_accuracy_on_held_out_shapes"]
    print(f"\nreconstruction of held-out images: {psnr:.1f} dB PSNR, {measures['autoencoder']['ssim']:.3f} SSIM")
    print("judge on held-out shapes: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))
    print(
        f"{settings.num_images} samples a row, {settings.num_inference_steps} DDIM steps; shares of what was asked:\n"
    )
    print(f"{'':<46}{'shape':>8}{'colour':>8}{'backgr.':>8}{'is red':>8}{'calls':>7}")
    for row in rows:
        cells = "".join(
            f"{'-' if v is None else f'{v:.1%}':>8}" for v in (row.shape, row.colour, row.background, row.red)
        )
        print(f"{row.title:<46}{cells}{row.evaluations:>7}")
    print("\npictures:")
    for row in rows:
        print(f"  {root / 'pictures' / row.file / 'grid.png'}")
    print(f"model: {root / 'model'}    figures: {root / 'quickstart.json'}")
    print(f'next: ldm sample {root / "model"} --prompt "a small blue star" --guidance-scale 7.5 --output-dir out')
