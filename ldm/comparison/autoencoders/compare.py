"""Compare autoencoders on the same held-out images: a table, a rate-distortion plot, a page of reconstructions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autoencoders import Autoencoder, LossConfig
from ldm.comparison.autoencoders.rate_distortion import plot_rate_distortion
from ldm.comparison.autoencoders.records import AutoencoderComparison, AutoencoderRecord
from ldm.comparison.folder import check_folder, claimed_folder, load_record, write_tables
from ldm.comparison.image_grid import save_below_each_other, save_sample_row
from ldm.data.dataset import ImageData
from ldm.data.selection import even_indices, plain_batches
from ldm.evaluation.autoencoder.base import AutoencoderEvaluation, AutoencoderEvaluators
from ldm.evaluation.autoencoder.config import AutoencoderEvaluationConfig
from ldm.evaluation.autoencoder.evaluate import (
    cautions,
    check_metrics,
    evaluate_autoencoder,
    prepare_autoencoder_evaluators,
    unavailable,
)
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, fingerprint, read_json


@dataclass(frozen=True)
class Candidate:
    """An autoencoder to compare, with its name in the table."""

    name: str
    model: Autoencoder
    loss: LossConfig | None = None  # of its training
    steps: int | None = None
    seconds: float | None = None

    @property
    def identity(self) -> str:
        """The fingerprint of all that its metrics depend on."""
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
    columns: int = 10,
    device: torch.device | str = "auto",
) -> AutoencoderComparison:
    """Measure every candidate; write autoencoders.json, .txt and .csv, a plot (PNG, SVG) and reconstructions.png, which
    has `columns` images.

    Each run is stored when it is done, so the same call after an interruption goes on with the next. A metric is
    measured where a model has it. `evaluators` default to those trained on `train_data`, which defaults to `data`.
    `UserError`, before any work, for images that a model does not take, a metric that none has, and a folder that holds
    something else.
    """
    config, folder = config or AutoencoderEvaluationConfig(), Path(output_dir)
    _check(candidates, data, config)
    check_folder(folder)
    device = resolve_device(device)
    evaluators = evaluators or prepare_autoencoder_evaluators(config, train_data or data, device=device)
    manifest = _manifest(data, config, evaluators, columns)
    with claimed_folder(folder, manifest):
        sample_rows, runs = [folder / "rows" / "originals.png"], []
        (images,) = plain_batches(data, even_indices(len(data), columns), columns)
        save_sample_row(images, sample_rows[0])
        for candidate in candidates:
            path, sample_row = (folder / "rows" / f"{candidate.slug}{ending}" for ending in (".json", ".png"))
            run = load_record(path, AutoencoderRecord.from_json)
            if run is None:
                run = _measure(candidate, data, config, evaluators, device)
                with torch.no_grad():
                    model = candidate.model.to(device)
                    save_sample_row(model.decode(model.encode(images.to(device)).mean).float().cpu(), sample_row)
                atomic_write_json(path, run.to_json())  # written last: the run is done
                run = AutoencoderRecord.from_json(read_json(path))
            runs.append(run)
            sample_rows.append(sample_row)
        warnings = cautions(min(config.num_images, len(data)), evaluators.extractor)
        comparison = AutoencoderComparison(tuple(runs), manifest, warnings)
        save_below_each_other(sample_rows, ["originals", *map(_label, runs)], folder / "reconstructions.png")
        plot_rate_distortion(runs, folder)
        write_tables(folder, "autoencoders", comparison.table(), comparison.csv(), comparison.to_json())
        return comparison


def _manifest(
    data: ImageData, config: AutoencoderEvaluationConfig, evaluators: AutoencoderEvaluators, columns: int
) -> dict[str, Any]:
    """What all runs share."""
    extractor = evaluators.extractor
    settings = {name: value for name, value in asdict(config).items() if not name.endswith("_weights")}
    return {
        "kind": "autoencoders",
        "data": data.name,
        "split": data.split,
        "data_fingerprint": data.image_fingerprint,
        "image_size": data.image_size,
        "extractor": extractor.name if extractor else None,
        "lpips": evaluators.lpips is not None,
        **{f"evaluation.{name}": value for name, value in settings.items()},
        "shown": columns,
    }


def _check(candidates: Sequence[Candidate], data: ImageData, config: AutoencoderEvaluationConfig) -> None:
    size = data.image_size
    for candidate in candidates:
        own_size, factor = candidate.model.config.sample_size, candidate.model.factor
        if own_size not in (None, size):
            raise UserError(f"{candidate.name}: was trained on images of {own_size} pixels, the data's have {size}")
        if size % factor:
            raise UserError(f"{candidate.name}: images of {size} pixels are not divisible by its {factor}")
    for metric in config.metrics:
        reasons = [unavailable(metric, candidate.model, size, config) for candidate in candidates]
        if all(reasons):
            raise UserError(f"{reasons[0]}", remedy="nor has another run", setting="metrics", value=metric)
    for candidate in candidates:
        own = replace(config, metrics=_available(candidate.model, size, config))
        try:
            check_metrics(AutoencoderEvaluation(candidate.model, data, own, loss=candidate.loss))
        except UserError as error:
            raise UserError(f"{candidate.name}: {error}") from None


def _available(model: Autoencoder, size: int, config: AutoencoderEvaluationConfig) -> tuple[str, ...]:
    """The named metrics that this model can have."""
    return tuple(name for name in config.metrics if unavailable(name, model, size, config) is None)


def _measure(
    candidate: Candidate,
    data: ImageData,
    config: AutoencoderEvaluationConfig,
    evaluators: AutoencoderEvaluators,
    device: torch.device | str,
) -> AutoencoderRecord:
    model, size = candidate.model, data.image_size
    metrics = _available(model, size, config) or (("psnr",) if config.metrics else ())
    config = replace(config, metrics=metrics)
    result = evaluate_autoencoder(model, data, config, evaluators=evaluators, loss=candidate.loss, device=device)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    encoder = sum(parameters.get(name, 0) for name in ("encoder", "quant_conv"))
    coder = "patches" if model.config.coder_kind == "linear" else model.config.coder
    kind = candidate.name, model.config.bottleneck, coder
    shape = model.latent_channels, size // model.factor, size // model.factor
    sizes = encoder, sum(parameters.values()) - encoder
    return AutoencoderRecord(*kind, shape, *sizes, candidate.steps, candidate.seconds, result)


def _label(run: AutoencoderRecord) -> str:
    psnr = run.value("psnr")
    return run.name if psnr is None else f"{run.name} {psnr.value:.2f} dB"
