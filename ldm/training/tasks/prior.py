"""Training priors over the codes of a frozen autoencoder, one network a level, with condition dropout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoencoders import Autoencoder
from autoencoders.priors import CodeGrid, CodePriors, PriorShape, mask_codes
from ldm.conditioning.conditioner import Conditioner
from ldm.data.cache_key import CacheKey
from ldm.data.code_cache import CodeCache, check_code_folder, encode_codes
from ldm.data.dataset import ImageData
from ldm.data.report import DataReport
from ldm.data.selection import even_indices, image_batches, plain_batches, to_device
from ldm.evaluation.periodic import PeriodicEvaluator
from ldm.models.size import build_within
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError
from ldm.sampling.code_prior import PRIOR, CodePriorModel, bits_of_codes, prior_condition
from ldm.sampling.config import Request
from ldm.sampling.model_folder import write_prior_index
from ldm.training.randomness import BatchPlan, StepRandom
from ldm.training.task import Loss, Task
from ldm.training.tasks.conditions import TrainingConditions
from ldm.training.tasks.latents import (
    IDENTITY,
    check_divisible,
    load_autoencoder,
    note_other_size,
    publish_autoencoder,
)
from ldm.training.tasks.settings import PriorRun

_BATCH = 64  # images at once where nothing is trained


class PriorModel(nn.Module):
    """What is trained together: the priors of all levels and, where the text encoder is embedded, that too."""

    def __init__(self, priors: CodePriors, conditioner: Conditioner) -> None:
        super().__init__()
        self.priors, self.conditioner = priors, conditioner

    def forward(
        self, codes: Sequence[Tensor], read: Sequence[Tensor] | None, labels: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor, ...]:
        """-log p in nats of the codes of each level, (B, N_l) each; see `CodePriors`."""
        return self.priors(codes, prior_condition(self.conditioner(labels, tokens)), read)


@dataclass(frozen=True)
class CodeBatch:
    """Code maps (B, h, w), coarse to fine, labels (B,) with -1 for none, and (index, seed) keys."""

    codes: tuple[Tensor, ...]
    labels: Tensor
    keys: list[tuple[int, int]]


class PriorTask(Task):
    """Mean negative log-likelihood of each level's codes, summed over the levels, which share no weights."""

    kind = "prior"
    model: PriorModel
    data: ImageData

    def __init__(self, config: PriorRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        if config.training.gradient_checkpointing:
            raise UserError("a prior over codes has none", remedy="leave it out", setting="gradient_checkpointing")
        self.config, self.data, self.validation, self.device = config, data, validation, device
        self.autoencoder, self.autoencoder_folder = load_autoencoder(config.autoencoder, device, config.ignore_manifest)
        self.levels = code_grids(self.autoencoder, data.image_size, config.autoencoder)
        note_other_size(self.autoencoder, data)
        seed, first = config.training.seed, config.first_caption_probability
        self.conditions = TrainingConditions(config.conditioning, data, first, seed)
        conditioner = self.conditions.conditioner
        shape = PriorShape(self.levels, conditioner.num_classes, conditioner.context_dim)
        priors = build_within(config.training.max_parameters, lambda: CodePriors(config.prior, shape, seed=seed))
        self.model = PriorModel(priors, conditioner)
        self.folder = Path(config.codes) if config.codes else Path(config.training.output_dir) / "codes"
        check_code_folder(self.folder, CacheKey.of(self.autoencoder, data))
        self.labels = torch.tensor([data.label(index) for index in range(len(data))])
        self.length, self.online = len(data), False
        self._held_out: tuple[Tensor, ...] | None = None
        if config.evaluation.eval_every:
            reference = validation if config.evaluation.eval_split == "validation" else data
            self.evaluator = PeriodicEvaluator(config.evaluation, reference, data, cast(Any, self.pipeline(self.model)))
        self.fingerprint = {
            "data": data.fingerprint,
            "autoencoder": self.autoencoder.fingerprint(),
            "prior": dataclasses.asdict(config.prior),
            "conditioning": config.conditioning.fingerprint(),
            "first_caption_probability": first,
            "training": config.training.fingerprint(),
        }

    def skip_cache(self) -> bool:
        self.online = not (self.folder / "manifest.json").is_file()
        return self.online

    def batches(self, plan: BatchPlan) -> Iterator[CodeBatch]:
        """Codes in the plan's order, half of them of mirrored images where the data set flips."""
        workers = self.config.training.dataloader_num_workers
        if self.online:
            for batch, keys in zip(image_batches(self.data, plan, workers), plan, strict=True):
                with torch.no_grad():
                    maps = tuple(self.autoencoder.codes(to_device(batch.images, self.device)))
                yield CodeBatch(maps, batch.labels.to(self.device), keys)
            return

        def codes() -> CodeCache:
            return encode_codes(
                self.autoencoder, self.data, self.folder, batch_size=_BATCH, num_workers=workers, device=self.device
            )

        cache = current_processes().main_process_first(codes)
        for keys in plan:
            indices = torch.tensor([index for index, _ in keys])
            flips = torch.tensor([cache.has_flips and seed % 2 == 1 for _, seed in keys])
            maps = tuple(level.to(self.device, non_blocking=True) for level in cache.maps(indices, flips))
            yield CodeBatch(maps, self.labels[indices].to(self.device), keys)

    @property
    def report(self) -> DataReport | None:
        return self.conditions.added_to(super().report)

    def loss(self, model: nn.Module, batch: CodeBatch, random: StepRandom) -> Loss:
        """Sum over levels of E[-log p(code)] in nats, given partly masked ones."""
        read: list[Tensor] | None = None
        if probability := self.config.prior.token_masking:
            read = []
            for level, (codes, grid) in enumerate(zip(batch.codes, self.levels, strict=True)):
                numbers = random.uniform(f"masking {level}", (2, *codes.shape[1:]))
                read.append(mask_codes(codes, probability, grid.num_codes, numbers))
        labels, tokens = self.conditions.of_batch(batch.labels, batch.keys, random)
        means = [nll.mean() for nll in model(batch.codes, read, labels, tokens)]
        terms = {}
        if len(means) > 1:
            terms = {f"bits_per_code_level_{level}": mean / math.log(2) for level, mean in enumerate(means)}
        return Loss(torch.stack(means).sum(), terms)

    def validate(self, model: nn.Module) -> dict[str, Any]:
        """Bits a code of held-out images, over all levels and of each, with and without the condition.

        "bits_per_code_uniform" is log2 K, the price of codes of which nothing is known.
        """
        assert isinstance(model, PriorModel)
        codes, conditioner = self._held_out_codes(), model.conditioner
        requests = [self._request(index) for index in self._held_out_indices()]
        conditional = conditioner.num_classes > 0 or conditioner.has_text
        measures: dict[str, Any] = {}
        for name in ("", "_unconditional") if conditional else ("",):
            bits = bits_of_codes(model.priors, conditioner, codes, requests, null=bool(name)).mean(0)  # (levels,)
            measures[f"bits_per_code{name}"] = float(bits.sum()) / sum(grid.length for grid in self.levels)
            if len(self.levels) > 1:
                for level, grid in enumerate(self.levels):
                    measures[f"bits_per_code_level_{level}{name}"] = float(bits[level]) / grid.length
            if not name:
                measures["bits_per_pixel"] = float(bits.sum()) / self.data.image_size**2
        return {**measures, "bits_per_code_uniform": model.priors.shape.uniform_bits}

    def _request(self, index: int) -> Request:
        """The condition of a held-out image."""
        label, texts = self.validation.label(index), self.validation.captions(index) or ("",)
        return Request(prompt=texts[0], class_label=label if label >= 0 else None)

    def preview(self, model: nn.Module) -> Tensor | None:
        """Samples on fixed seeds for the conditions of held-out images, the classes in turn."""
        if not self.config.preview_images:
            return None
        assert isinstance(model, PriorModel)
        indices, count = self._held_out_indices(), self.config.preview_images
        requests = self.conditions.of_preview(self.validation, indices[:: max(1, len(indices) // count)], count)
        return torch.cat(list(self.pipeline(model).generate(requests)))

    def pipeline(self, model: nn.Module) -> CodePriorModel:
        """The model as it stands, ready to sample."""
        assert isinstance(model, PriorModel)
        return CodePriorModel(self.autoencoder, model.priors, model.conditioner, self.device)

    def publish(self, model: nn.Module, folder: Path) -> None:
        """Write the model folder: vae, prior, conditioning."""
        assert isinstance(model, PriorModel)
        publish_autoencoder(folder, self.autoencoder, self.autoencoder_folder)
        model.priors.save_pretrained(folder / PRIOR)
        model.conditioner.save_pretrained(folder)
        write_prior_index(folder, model.conditioner.index_entries())

    def _held_out_indices(self) -> list[int]:
        """Spread over the split, for a folder of classes begins with those of one class."""
        return even_indices(len(self.validation), self.config.validation_images)

    def _held_out_codes(self) -> tuple[Tensor, ...]:
        """Of the held-out images, without mirroring; encoded once."""
        if self._held_out is None:
            images = plain_batches(self.validation, self._held_out_indices(), _BATCH, self.device)
            parts = [self.autoencoder.codes(batch) for batch in images]
            self._held_out = tuple(
                torch.cat([part[level] for part in parts]).cpu() for level in range(len(self.levels))
            )
        return self._held_out


@torch.no_grad()
def code_grids(autoencoder: Autoencoder, image_size: int, name: str) -> tuple[CodeGrid, ...]:
    """The levels of codes of square images; `UserError` for an autoencoder that has none, or too many, to model."""
    sizes = autoencoder.config.codebook_sizes
    if name == IDENTITY or not sizes:
        problem = f"bottleneck {autoencoder.config.bottleneck} has no codes; train one with, say, `bottleneck` vq"
        raise UserError(problem, setting="autoencoder", value=name)
    check_divisible(image_size, autoencoder.factor)
    device = next(autoencoder.parameters()).device
    maps = autoencoder.codes(torch.zeros(1, autoencoder.config.in_channels, image_size, image_size, device=device))
    try:
        return tuple(
            CodeGrid(size, height=codes.shape[1], width=codes.shape[2], codebooks=codes.shape[2] // codes.shape[1])
            for size, codes in zip(sizes, maps, strict=True)
        )
    except ValueError as error:
        raise UserError(f"too many codes for a prior ({error})", setting="autoencoder", value=name) from None
