"""`ldm quickstart`: training, sampling and evaluation on built-in data, in minutes on two CPU cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.cli.parsing import parse
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.files import atomic_write_json
from ldm.runtime.progress import progress
from ldm.runtime.settings import find_config, read_settings
from ldm.runtime.text import counted
from ldm.sampling.config import Request, SamplingConfig

if TYPE_CHECKING:
    from ldm.data.dataset import ImageData
    from ldm.sampling.pipeline import Pipeline

_SEED, _BATCH_SIZE = 1, 64


@dataclass(frozen=True)
class QuickstartRun:
    """Train an autoencoder, a text-conditional U-Net and a noisy classifier on `shapes`, sample, evaluate, compare."""

    output_dir: str = "runs/quickstart"
    """Folder for everything; the same command continues an interrupted one."""
    num_images: int = 256
    """Samples for each row of the table."""
    num_inference_steps: int = 25
    """Sampling steps."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


@dataclass(frozen=True)
class Setup:
    """One row of the table to be: its title and folder, and what is sampled with which attributes expected."""

    title: str
    folder: str
    requests: Sequence[Request]
    sampling: SamplingConfig
    expected: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One row of the table: shares in [0, 1] of samples with the expected attributes, None where none is expected."""

    title: str
    file: str
    shape: float | None
    colour: float | None
    background: float | None
    red: float
    evaluations: int


def run(arguments: list[str]) -> None:
    """Train, sample, evaluate; print the table and the paths of the images."""
    settings = parse(QuickstartRun, arguments, "quickstart")
    at_least(settings, num_images=1)
    root = Path(settings.output_dir)
    _check_folder(root)
    seconds: dict[str, float] = {}
    metrics = _train_all(root, settings.device, seconds)
    rows, judge = _sample_all(root, settings, seconds)
    result = {
        "settings": asdict(settings),
        "reconstruction_psnr_db": metrics["autoencoder"]["psnr"],
        "rows": [asdict(row) for row in rows],
        **judge,
        "classifier_accuracy_by_noise": metrics["classifier"]["accuracy_by_noise"],
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    atomic_write_json(root / "quickstart.json", {"kind": "quickstart", **result})
    _print_summary(root, settings, metrics["autoencoder"], rows, judge["judge_accuracy_on_held_out_shapes"])


def _check_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"--output-dir {root}: is a file; give a new or empty folder")
    if root.is_dir() and any(root.iterdir()) and not (root / "quickstart.json").is_file():
        raise UserError(f"--output-dir {root}: holds something else; give a new or empty folder")
    atomic_write_json(root / "quickstart.json", {"kind": "quickstart"})


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    print(f"== {name}", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def _train_all(root: Path, device: str, seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The three trainings, each resumed or skipped if it is done; their last metrics."""
    from ldm.cli.encode import run as encode
    from ldm.cli.train import _schema, train_with

    latents = root / "latents"
    sources = {"diffusion": root / "autoencoder", "classifier": root / "diffusion"}  # of their autoencoder
    metrics = {}
    for kind in ("autoencoder", "diffusion", "classifier"):
        settings = read_settings(_schema(kind), find_config(f"quickstart/{kind}"))
        changes: dict[str, Any] = {"training": replace(settings.training, output_dir=str(root / kind), device=device)}
        if kind in sources:
            changes |= {"autoencoder": str(sources[kind]), "latents": str(latents)}
        with _timed(seconds, f"ldm train {kind} --config quickstart/{kind} --output-dir {root / kind}"):
            metrics[kind] = train_with(kind, replace(settings, **changes))
        if kind == "autoencoder":
            with _timed(seconds, f"ldm encode --autoencoder {root / kind} --output-dir {latents}"):
                data = settings.dataset
                flags = ["--shapes-train", str(data.shapes_train), "--image-size", str(data.image_size)]
                folders = ["--autoencoder", str(root / kind), "--output-dir", str(latents)]
                encode([*folders, *flags, "--data", data.data, "--device", device])
    return metrics


def _sample_all(root: Path, settings: QuickstartRun, seconds: dict[str, float]) -> tuple[list[Row], dict[str, Any]]:
    from ldm.cli.train import _schema
    from ldm.data.open import open_data
    from ldm.evaluation.features.judge import trained_judge
    from ldm.runtime.device import resolve_device
    from ldm.sampling.pipeline import Pipeline

    device = resolve_device(settings.device)
    dataset = read_settings(_schema("diffusion"), find_config("quickstart/diffusion")).dataset
    train, held_out = open_data(dataset, "train"), open_data(dataset, "validation")
    with _timed(seconds, "train the judge of the samples (a small network on real shapes)"):
        judge = trained_judge(train, device=device)
    assert judge is not None, "shapes have attributes"
    pipeline = Pipeline.load(root / "diffusion", device=device, classifier=root / "classifier")
    if not (root / "model").is_dir():
        pipeline.save(root / "model")
    rows = []
    for setup in _setups(held_out, settings.num_images, settings.num_inference_steps):
        with _timed(seconds, f"sample: {setup.title}"):
            images = _sample(pipeline, setup, root)
            rows.append(_row(setup, judge(images), pipeline.evaluations))
    return rows, {"judge": judge.name, "judge_accuracy_on_held_out_shapes": dict(judge.accuracy)}


def _setups(data: ImageData, count: int, steps: int) -> list[Setup]:
    indices, names = [index % len(data) for index in range(count)], data.class_names
    attributes, captions = [data.attributes(i) for i in indices], [Request(data.captions(i)[0]) for i in indices]
    circle, circles = [{"shape": "circle"}] * count, [Request("a large circle")] * count
    not_red = [Request("a large circle", negative_prompt="red")] * count
    classes = [Request(class_label=index % len(names)) for index in range(count)]
    shapes = [{"shape": names[index % len(names)]} for index in range(count)]

    def scale(guidance: float, classifier: float = 0.0) -> SamplingConfig:
        return SamplingConfig(num_inference_steps=steps, guidance_scale=guidance, classifier_scale=classifier)

    return [
        Setup("full captions, --guidance-scale 1", "captions-scale-1", captions, scale(1.0), attributes),
        Setup("full captions, --guidance-scale 7.5", "captions-scale-7.5", captions, scale(7.5), attributes),
        Setup("'a large circle', 1", "large-circle-scale-1", circles, scale(1.0), circle),
        Setup("'a large circle', 7.5", "large-circle", circles, scale(7.5), circle),
        Setup("'a large circle', 7.5, --negative-prompt red", "large-circle-not-red", not_red, scale(7.5), circle),
        Setup("no guidance, no prompt", "unconditional", [Request()] * count, scale(0.0), shapes),
        Setup("--classifier-scale 15 alone, no prompt", "classifier", classes, scale(0.0, 15.0), shapes),
    ]


def _sample(pipeline: Pipeline, setup: Setup, root: Path) -> Tensor:
    """Sample, write the images, and return them (N, 3, H, W)."""
    from ldm.cli.outputs import write_samples

    images: list[Tensor] = []

    def collect(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            images.append(batch)
            yield batch

    requests = list(setup.requests)
    batches = pipeline.generate(requests, setup.sampling, seed=_SEED, batch_size=_BATCH_SIZE)
    batches = progress(batches, "batches", total=-(-len(requests) // _BATCH_SIZE))
    metadata = {"model": str(root / "model"), "classifier": "", "seed": _SEED, "first_index": 0}
    write_samples(root / "pictures" / setup.folder, collect(batches), requests, setup.sampling, metadata)
    return torch.cat(images)


def _row(setup: Setup, attributes: Sequence[Mapping[str, str]], evaluations: int) -> Row:
    """The row of samples that a judge finds to have these attributes."""

    def share(name: str) -> float | None:
        pairs = zip(attributes, setup.expected, strict=True)
        hits = [sample[name] == str(expected[name]) for sample, expected in pairs if name in expected]
        return sum(hits) / len(hits) if hits else None

    red = sum(sample["colour"] == "red" for sample in attributes) / len(attributes)
    shares = share("shape"), share("colour"), share("background")
    return Row(setup.title, setup.folder, *shares, red, evaluations // len(attributes))


def _print_summary(
    root: Path,
    settings: QuickstartRun,
    reconstruction: Mapping[str, float],
    rows: Sequence[Row],
    accuracy: Mapping[str, float],
) -> None:
    psnr, ssim = reconstruction["psnr"], reconstruction["ssim"]
    print(f"\nreconstruction of held-out images: {psnr:.1f} dB PSNR, {ssim:.3f} SSIM")
    print("judge on held-out shapes: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))
    steps = counted(settings.num_inference_steps, "DDIM step", "DDIM steps")
    print(f"{counted(settings.num_images, 'sample')} a row, {steps}; share of samples with")
    print("the expected attributes:\n")
    print(f"{'':<46}{'shape':>8}{'colour':>8}{'backgr.':>8}{'is red':>8}{'evaluations':>13}")
    for row in rows:
        shares = (row.shape, row.colour, row.background, row.red)
        percents = "".join(f"{'-' if value is None else f'{value:.1%}':>8}" for value in shares)
        print(f"{row.title:<46}{percents}{row.evaluations:>13}")
    print("\nimages:")
    for row in rows:
        print(f"  {root / 'pictures' / row.file / 'grid.png'}")
    print(f"model: {root / 'model'}    metrics: {root / 'quickstart.json'}")
    print(f'next: ldm sample {root / "model"} --prompt "a small blue star" --guidance-scale 7.5 --output-dir out')
