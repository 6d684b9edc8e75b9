"""Train the small network on a data set: deterministic, seconds long, cached in the user's folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.features.small_network import CLASS, ROTATION, NetworkMetadata, SmallNetwork, fit_size, working_size
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.files import cache_folder, fingerprint
from ldm.runtime.images import to_uint8
from ldm.runtime.progress import progress
from ldm.runtime.schema import convert, parse_json
from ldm.runtime.tensors import load_expected, metadata_text, save_with_digest
from ldm.runtime.text import counted, printable

logger = logging.getLogger("ldm")


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; part of the key of the cache."""

    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 4e-3
    images: int = 8192
    """Training images at most; drawn at random if there are more."""
    held_out: int = 1024
    """Images held out for the test at most, and at most a tenth of all."""
    seed: int = 0
    version: int = 1


def trained_network(
    data: ImageData, *, device: torch.device | str = "auto", recipe: Recipe | None = None
) -> tuple[SmallNetwork, NetworkMetadata]:
    """The network of `data`, from the cache if it was trained before, else trained now (about 20 s on one core)."""
    recipe = recipe or Recipe()
    key = fingerprint({"recipe": asdict(recipe), "data": data.fingerprint, "size": data.image_size})
    path = cache_folder() / "networks" / f"{key[:32]}.safetensors"
    trained = _load(path)
    if trained is None:
        trained = train_network(data, device=resolve_device(device), recipe=recipe)
        _store(path, *trained)
    network, metadata = trained
    return network.to(resolve_device(device)).eval().requires_grad_(False), metadata


def train_network(
    data: ImageData, *, device: torch.device | str, recipe: Recipe
) -> tuple[SmallNetwork, NetworkMetadata]:
    """Train and test; equal bits on the CPU for equal arguments and numbers of threads."""
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(data), generator=generator).tolist()
    held_out = min(recipe.held_out, len(order) // 10)
    if held_out < 1:
        raise UserError(
            f"{data.name}: {counted(len(data), 'image')}, too few to train features on; 10 or more are needed"
        )
    chosen = order[: held_out + recipe.images]
    size = working_size(data.image_size)
    reading = progress(chosen, "reading images for the judge")
    pixels = torch.cat([to_uint8(fit_size(data[i].image[None], size)) for i in reading]).to(device)  # (N, 3, S, S)
    heads, targets, class_head = _tasks(data, chosen)
    targets = {name: values.to(device) for name, values in targets.items()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        network = SmallNetwork(size, heads)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    peak, steps = recipe.learning_rate, recipe.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.15)
    batches = _batches(held_out, len(chosen), recipe, generator)
    with torch.enable_grad():
        for rows in progress(batches, "training the judge", total=steps):
            rows = rows.to(device)
            images, labels = _prepare(pixels[rows], {name: t[rows] for name, t in targets.items()}, heads, generator)
            logits = network(_soften(images, generator))
            losses = [F.cross_entropy(logits[name], labels[name], ignore_index=-1, reduction="sum") for name in heads]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().div(len(rows)).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        network.standardise(_float(pixels[held_out:]))
        tested = {name: values[:held_out] for name, values in targets.items()}
        accuracy = _test(network, _float(pixels[:held_out]), tested, heads)
    metadata = NetworkMetadata(data.name, size, heads, class_head, accuracy, len(chosen) - held_out, held_out)
    return network, metadata


def _tasks(data: ImageData, chosen: Sequence[int]) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor], str]:
    """Names of the classes of each task, their numbers (N,) (-1: unknown), and the task that stands for the labels."""
    heads: dict[str, tuple[str, ...]] = {}
    targets: dict[str, Tensor] = {}
    class_head = ""
    if data.attribute_names:
        attributes = [data.attributes(i) for i in chosen]
        for name, values in data.attribute_names.items():
            heads[name] = tuple(map(str, values))
            number = {value: k for k, value in enumerate(heads[name])}
            targets[name] = torch.tensor([number.get(str(row.get(name)), -1) for row in attributes])
    if data.class_names:
        same = [name for name, values in heads.items() if set(values) == set(data.class_names)]
        class_head = same[0] if same else CLASS
        if not same:
            heads[CLASS] = tuple(data.class_names)
            targets[CLASS] = torch.tensor([data.label(i) for i in chosen])
    heads = {name: values for name, values in heads.items() if len(values) > 1}
    if not heads:
        return {ROTATION: ("0", "90", "180", "270")}, {}, ""
    return heads, {name: targets[name] for name in heads}, class_head if class_head in heads else ""


def _batches(first: int, last: int, recipe: Recipe, generator: torch.Generator) -> list[Tensor]:
    """Row numbers of every step: epochs over [first, last) in random order."""
    size = min(recipe.batch_size, last - first)
    rows: list[Tensor] = []
    while len(rows) < recipe.steps:
        rows.extend((torch.randperm(last - first, generator=generator) + first).split(size)[: (last - first) // size])
    return rows[: recipe.steps]


def _prepare(
    pixels: Tensor, targets: Mapping[str, Tensor], heads: Mapping[str, object], generator: torch.Generator
) -> tuple[Tensor, Mapping[str, Tensor]]:
    images = _float(pixels)
    if ROTATION not in heads:
        return images, targets
    turns = torch.randint(4, (len(images),), generator=generator).to(images.device)
    return torch.stack([torch.rot90(x, int(k), (1, 2)) for x, k in zip(images, turns, strict=True)]), {ROTATION: turns}


def _soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images (sigma 0.2 to 1.1 pixels) and add noise to most: a decoder's images are not crisp."""
    n, c, h, w = images.shape
    sigma = 0.2 + 0.9 * torch.rand(n, 1, generator=generator)
    kernel = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))  # (B, 5)
    kernel[torch.rand(n, generator=generator) < 0.5] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.device).repeat_interleave(c, 0)[:, None]  # (BC, 1, 5)
    x = F.pad(images.reshape(1, n * c, h, w), (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, kernel[..., None, :], groups=n * c)
    x = F.conv2d(x, kernel[..., None], groups=n * c).view(n, c, h, w)
    strength = 0.1 * torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.7)
    noise = torch.randn(images.shape, generator=generator)
    return x + (strength * noise).to(images.device)


def _test(
    network: SmallNetwork, images: Tensor, targets: Mapping[str, Tensor], heads: Mapping[str, object]
) -> dict[str, float]:
    """Accuracy a task."""
    if ROTATION in heads:
        right = [network(torch.rot90(images, k, (2, 3)))[ROTATION].argmax(1) == k for k in range(4)]
        return {ROTATION: float(torch.cat(right).float().mean())}
    logits = network(images)
    accuracy = {}
    for name, labels in targets.items():
        known = labels >= 0
        accuracy[name] = float((logits[name].argmax(1) == labels)[known].float().mean())  # not a number for none
    return accuracy


def safe_name(text: str) -> str:
    """A name that is inert in paths, module names and terminals."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:40] or "data"


def _float(pixels: Tensor) -> Tensor:
    return pixels.float().div(127.5).sub(1)


def _store(path: Path, network: SmallNetwork, metadata: NetworkMetadata) -> None:
    try:
        save_with_digest(path, network.state_dict(), "facts", json.dumps(asdict(metadata)))
    except OSError as error:
        logger.warning("the trained network could not be written to %s (%s)", path.parent, error.strerror)


def _load(path: Path) -> tuple[SmallNetwork, NetworkMetadata] | None:
    """A stored network, or None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        metadata = convert(parse_json(metadata_text(path, "facts")), NetworkMetadata)
        with torch.random.fork_rng(devices=[]):
            network = SmallNetwork(metadata.image_size, metadata.heads)
        network.load_state_dict(load_expected(path, network.state_dict(), described_by="its metadata"))
        return network, metadata
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        logger.warning("the stored network of the data is damaged and is trained anew (%s)", printable(error))
        return None
