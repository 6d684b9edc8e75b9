"""Training an autoencoder on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    CorruptionConfig,
    LossConfig,
    autoencoder_loss,
    corrupt,
    measure_latents,
)
from ldm.data import DataConfig, ImageData, collate
from ldm.errors import UserError, at_least
from ldm.evaluation.image_quality import psnr, ssim
from ldm.files import atomic_folder
from ldm.training.config import TrainingConfig, config_facts
from ldm.training.loop import Loss
from ldm.training.randomness import BatchPlan, StepRandom


@dataclass(frozen=True)
class AutoencoderRun:
    """`ldm train autoencoder`: compress images into latents and back."""

    dataset: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation_images: int = 256
    """Held-out images on which PSNR and SSIM are measured."""
    calibration_images: int = 2048
    """Training images on which the mean and standard deviation of the latents are measured."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=1, calibration_images=2)


class AutoencoderTask:
    """Reconstruction plus the bottleneck's own terms; publishes `vae/` with calibrated latents."""

    kind = "autoencoder"

    def __init__(self, config: AutoencoderRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        if config.autoencoder.bottleneck == "identity":
            raise UserError(
                "--bottleneck identity: there is nothing to train; use another, such as kl or vq, "
                "or go straight to `ldm train diffusion --autoencoder identity`"
            )
        if config.autoencoder.bottleneck == "linear" and config.corruption.active:
            raise UserError(
                "--mask-probability, --noise-std: a linear autoencoder is found in closed form, undamaged; leave out"
            )
        if config.autoencoder.in_channels != 3:
            raise UserError(f"--in-channels {config.autoencoder.in_channels}: images have 3 channels")
        self.config, self.data, self.validation, self.device = config, data, validation, device
        size = config.autoencoder.sample_size or data.image_size  # `ldm sample` draws images of this size
        self.model = Autoencoder(replace(config.autoencoder, sample_size=size), seed=config.training.seed)
        if data.image_size % self.model.factor:
            raise UserError(f"--image-size {data.image_size}: not divisible by the autoencoder's {self.model.factor}")
        self.model.gradient_checkpointing = config.training.gradient_checkpointing
        if config.autoencoder.has_codebook and config.autoencoder.codebook_init == "data":
            self._initialise_codes()
        self.length = len(data)
        self.facts: dict[str, Any] = {
            "data": data.fingerprint,
            "autoencoder": _facts(config.autoencoder),
            "loss": dataclasses.asdict(config.loss),
            **({"corruption": dataclasses.asdict(config.corruption)} if config.corruption.active else {}),
            "training": config_facts(config.training),
        }

    def _initialise_codes(self) -> None:
        """Codes from the latents of calibration images spread over the data; some more latents than codes."""
        codes, each = self.config.autoencoder.num_codes, (self.data.image_size // self.model.factor) ** 2
        count = min(self.config.calibration_images, len(self.data))
        if codes > count * each:
            raise UserError(
                f"--num-codes {codes}: larger than the sample that would initialise the codebook, {count * each} "
                f"latents of {count} images; take fewer codes, or more --calibration-images if there are"
            )
        images = plain_batches(self.data, _spread(min(count, -(-4 * codes // each)), len(self.data)), 64, self.device)
        draws = torch.Generator().manual_seed(self.config.training.seed)
        self.model.to(self.device).initialise_codes(images, draws)

    def batches(self, plan: BatchPlan) -> Iterator[Tensor]:
        """Images (B, 3, H, W) on the device."""
        for batch in image_batches(self.data, plan, self.config.training.dataloader_num_workers):
            yield to_device(batch.images, self.device)

    def loss(self, model: nn.Module, batch: Tensor, random: StepRandom) -> Loss:
        damaged = corrupt(batch, self.config.corruption, random.generator("corruption"))
        self.model.at_step(random.step)
        output = model(damaged, generator=random.generator("posterior"))
        result = autoencoder_loss(self.config.loss, batch, output)
        return Loss(result.total, {**result.terms, **output.metrics})

    def validate(self, model: nn.Module) -> dict[str, Any]:
        count = min(self.config.validation_images, len(self.validation))
        quality: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
        for images in plain_batches(self.validation, range(count), 64, self.device):
            reconstruction = reconstruct(model, images)
            quality["psnr"].append(psnr(reconstruction, images))
            quality["ssim"].append(ssim(reconstruction, images))
        return {name: float(torch.cat(values).mean()) for name, values in quality.items()}

    def preview(self, model: nn.Module) -> Tensor:
        """Eight held-out images above their reconstructions, twice."""
        count = min(16, len(self.validation))
        images = next(plain_batches(self.validation, range(count), count, self.device))
        reconstruction = reconstruct(model, images)
        rows = [part for pair in zip(images.split(4), reconstruction.split(4), strict=True) for part in pair]
        return torch.cat(rows)

    def publish(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Autoencoder)
        published = Autoencoder(model.config).to(self.device).eval()
        published.load_state_dict(model.state_dict())
        count = min(self.config.calibration_images, len(self.data))
        images = plain_batches(self.data, _spread(count, len(self.data)), 64, self.device)
        published.calibrate(*measure_latents(published, images))
        with atomic_folder(folder / "vae") as target:
            published.save_pretrained(target)


def _facts(config: AutoencoderConfig) -> dict[str, Any]:
    """The settings that a resumed run must share. Those that are newer than the first runs are there where they act."""
    unused = {name for name in ("vqvae2", "nvae") if name != config.bottleneck}
    unused |= {"coder", "vit"} if config.coder == "conv" else set()
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}


def _spread(count: int, length: int) -> list[int]:
    """`count` indices from the first to the last of `length`, evenly."""
    return [round(place * (length - 1) / max(1, count - 1)) for place in range(count)]


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) through the posterior mean and back."""
    assert isinstance(model, Autoencoder)
    return model.decode(model.encode(images).mean).float()


def image_batches(data: ImageData, plan: BatchPlan, workers: int) -> Iterable[Any]:
    """`Batch`es of augmented images in the plan's order, from `workers` processes or from this one."""
    return DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=plan,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        generator=torch.Generator().manual_seed(0),
    )


def plain_batches(data: ImageData, indices: Iterable[int], size: int, device: torch.device) -> Iterator[Tensor]:
    """Images without augmentation, (B, 3, H, W) on the device, in the order of `indices`."""
    chosen = list(indices)
    for start in range(0, len(chosen), size):
        yield to_device(collate([data[index] for index in chosen[start : start + size]]).images, device)


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Move images without waiting for the device, in channels_last."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)
