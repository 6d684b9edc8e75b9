"""Compare autoencoders on the same held-out images: a table, a rate-distortion plot, a page of reconstructions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoencoders import Autoencoder, LossConfig
from ldm.comparison.autoencoders.rate_distortion import plot_rate_distortion
from ldm.comparison.autoencoders.records import AutoencoderComparison, AutoencoderRow
from ldm.comparison.folder import check_folder, claim
from ldm.comparison.picture import below_each_other, save_strip
from ldm.data.dataset import ImageData
from ldm.data.selection import even_indices, plain_batches
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig, why_not
from ldm.evaluation.autoencoder.evaluate import cautions, evaluate_autoencoder, prepare_autoencoder_evaluators
from ldm.evaluation.autoencoder.importance import likelihood_of
from ldm.evaluation.autoencoder.measures import AutoencoderEvaluators
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write, atomic_write_json, fingerprint, read_json

RESULT, TABLE, CSV, PAGE = "autoencoders.json", "autoencoders.txt", "autoencoders.csv", "reconstructions.png"


@dataclass(frozen=True)
class Candidate:
    """An autoencoder to compare, under the name that it is to have."""

    name: str
    model: Autoencoder
    loss: LossConfig | None = None  # of its training
    steps: int | None = None
    seconds: float | None = None

    @property
    def identity(self) -> str:
        """What its figures depend on."""
        return fingerprint([self.model.fingerprint(), asdict(self.loss) if self.loss else None])

    @property
    def slug(self) -> str:
        """A file name."""
        return f"{re.sub('[^A-Za-z0-9-]+', '_', self.name)[:40]}-{self.identity[:12]}"


def compare_autoencoders(
    candidates: Sequence[Candidate],
    data: ImageData,
    config: AutoencoderEvaluationConfig | None = None,
    *,
    output_dir: str | Path,
    evaluators: AutoencoderEvaluators | None = None,
    train_data: ImageData | None = None,
    shown: int = 10,
    device: torch.device | str = "cpu",
) -> AutoencoderComparison:
    """Measure every candidate; write autoencoders.json, .txt and .csv, a plot (PNG, SVG) and reconstructions.png.

    Each row is stored when it is done, so the same call after an interruption goes on with the next. A metric that is
    asked for is measured where a model has it. `evaluators` default to those trained on `train_data`, which defaults
    to `data`. `UserError`, before any work, for images that a model does not take, a metric that none has, and a folder
    that holds something else.
    """
    config, folder = config or AutoencoderEvaluationConfig(), Path(output_dir)
    _check(candidates, data, config)
    check_folder(folder)
    evaluators = evaluators or prepare_autoencoder_evaluators(config, train_data or data, device=device)
    extractor = evaluators.extractor
    plain = {name: value for name, value in asdict(config).items() if not name.endswith("_weights")}
    shared: dict[str, Any] = {
        "kind": "autoencoders",
        "data": data.name,
        "split": data.split,
        "data_fingerprint": data.image_fingerprint,
        "image_size": data.image_size,
        "extractor": extractor.name if extractor else None,
        "lpips": evaluators.lpips is not None,
        **{f"evaluation.{name}": value for name, value in plain.items()},
        "shown": shown,
    }
    claim(folder, shared)
    strips, rows = [folder / "rows" / "originals.png"], []
    (images,) = plain_batches(data, even_indices(len(data), shown), shown)
    save_strip(images, strips[0])
    for candidate in candidates:
        place, strip = (folder / "rows" / f"{candidate.slug}{ending}" for ending in (".json", ".png"))
        if not place.is_file():
            row = _row(candidate, data, config, evaluators, device)
            with torch.no_grad():
                model = candidate.model.to(device)
                save_strip(model.decode(model.encode(images.to(device)).mean).float().cpu(), strip)
            atomic_write_json(place, row.to_json())  # last: with it the row is done
        rows.append(AutoencoderRow.from_json(read_json(place)))
        strips.append(strip)
    warnings = cautions(min(config.num_images, len(data)), extractor)
    found = AutoencoderComparison(tuple(rows), shared, warnings)
    below_each_other(strips, ["originals", *map(_label, rows)], folder / PAGE)
    plot_rate_distortion(rows, folder)
    atomic_write(folder / TABLE, found.table() + "\n")
    atomic_write(folder / CSV, found.csv())
    atomic_write_json(folder / RESULT, found.to_json())
    return found


def _check(candidates: Sequence[Candidate], data: ImageData, config: AutoencoderEvaluationConfig) -> None:
    size = data.image_size
    for each in candidates:
        made_for = each.model.config.sample_size
        if made_for not in (None, size):
            raise UserError(f"{each.name}: it was trained on images of {made_for} pixels, the others' have {size}")
        if size % each.model.factor:
            raise UserError(f"{each.name}: images of {size} pixels are not divisible by its {each.model.factor}")
    for metric in config.metrics:
        reasons = [why_not(metric, each.model, size, config) for each in candidates]
        if all(reasons):
            raise UserError(f"{reasons[0]}", remedy="nor has another run", setting="metrics", value=metric)
    if "iwae" in config.metrics:
        for each in candidates:
            if why_not("iwae", each.model, size, config) is None:
                try:
                    likelihood_of(each.model, each.loss, config.likelihood_scale)
                except UserError as error:
                    raise UserError(f"{each.name}: {error}") from None


def _row(
    candidate: Candidate,
    data: ImageData,
    config: AutoencoderEvaluationConfig,
    evaluators: AutoencoderEvaluators,
    device: torch.device | str,
) -> AutoencoderRow:
    model, size = candidate.model, data.image_size
    own = replace(config, metrics=tuple(name for name in config.metrics if why_not(name, model, size, config) is None))
    if config.metrics and not own.metrics:
        own = replace(config, metrics=("psnr",))
    result = evaluate_autoencoder(model, data, own, evaluators=evaluators, loss=candidate.loss, device=device)
    parts = {name: _parameters(part) for name, part in model.named_children()}
    encoder = sum(parts.get(name, 0) for name in ("encoder", "quant_conv"))
    return AutoencoderRow(
        candidate.name,
        model.config.bottleneck,
        "patches" if model.config.bottleneck == "linear" else str(getattr(model.config, "coder", "conv")),
        (model.latent_channels, size // model.factor, size // model.factor),
        encoder,
        sum(parts.values()) - encoder,
        candidate.steps,
        candidate.seconds,
        result,
    )


def _parameters(part: nn.Module | None) -> int:
    return 0 if part is None else sum(parameter.numel() for parameter in part.parameters())


def _label(row: AutoencoderRow) -> str:
    psnr = row.figure("psnr")
    return row.name if psnr is None else f"{row.name} {psnr.value:.2f} dB"
