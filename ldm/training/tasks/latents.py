"""What diffusion and classifier trainings share: cached latents, labels, the forward process, published parts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autoencoders import Autoencoder, AutoencoderConfig
from ldm.data.cache_device import choose_cache_device
from ldm.data.cache_key import CacheKey, check_cache_folder
from ldm.data.dataset import ImageData
from ldm.data.latent_cache import LatentCache, encode_latents
from ldm.data.selection import image_batches, plain_batches, to_device
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_write_json
from ldm.runtime.text import counted
from ldm.sampling.forward_process import Process
from ldm.sampling.model_folder import copy_part, read_autoencoder
from ldm.sampling.publication import reading
from ldm.training.randomness import BatchPlan, StepRandom
from ldm.training.task import Task
from ldm.training.tasks.settings import ClassifierRun, DiffusionConfig, DiffusionRun
from samplers import TARGETS, DiscreteSchedule, EDMSchedule, EDMTarget, FlowSchedule, FlowTarget

logger = logging.getLogger("ldm")
IDENTITY = "identity"  # what `autoencoder` is called where the latents are the pixels
ONLINE = "none"  # what `latents` is called where there is no cache
_ENCODE_BATCH = 64

logger = logging.getLogger("ldm")


@dataclass(frozen=True)
class LatentBatch:
    """Posterior mean (B, C, h, w) and std (or None), labels (B,) with -1 for none, and (index, seed) keys."""

    mean: Tensor
    std: Tensor | None
    labels: Tensor
    keys: list[tuple[int, int]]

    def sample(self, random: StepRandom) -> Tensor:
        """Latents drawn from the posterior, float32."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * random.normal("posterior", self.mean.shape[1:])


def make_process(config: DiffusionConfig) -> Process:
    """The noise schedule that these settings describe, with the target."""
    if config.beta_schedule == "flow":
        return Process(FlowSchedule(config.num_train_timesteps), FlowTarget())
    if config.beta_schedule == "edm":
        return Process(EDMSchedule(num_train_timesteps=config.num_train_timesteps), EDMTarget(sigma_data=1.0))
    betas = config.beta_start, config.beta_end
    options = config.num_train_timesteps, *betas, config.rescale_betas_zero_snr
    schedule = DiscreteSchedule(config.beta_schedule, *options)
    return Process(schedule, TARGETS[config.prediction](), config.learn_variance)


def load_autoencoder(
    folder: str, device: torch.device, ignore_manifest: bool = False
) -> tuple[Autoencoder, Path | None]:
    """The autoencoder of a run, model or `vae` folder, frozen, with the folder that holds it.

    "identity" is the one without a folder, of diffusion in pixels: its latents are the images in [-1, 1] as they are,
    with no calibration, as in Ho et al. 2020, section 3.3.
    """
    if folder == IDENTITY:
        return Autoencoder(AutoencoderConfig(bottleneck="identity")).to(device).eval(), None
    root = Path(folder)
    path = root / "vae" if (root / "vae").is_dir() else root
    if not (path / "config.json").is_file():
        problem = "no vae/config.json in it" if root.exists() else "no such folder"
        remedy = "give the output folder of `ldm train autoencoder`, or identity"
        raise UserError(problem, remedy=remedy, setting="autoencoder", value=folder)
    with user_errors(setting="autoencoder", value=folder), reading(root):
        autoencoder = read_autoencoder(path, ignore_manifest=ignore_manifest)
    return autoencoder.to(device).eval().requires_grad_(False), path


def check_divisible(image_size: int, factor: int) -> None:
    """`UserError` for images that an autoencoder of this factor cannot reduce."""
    if image_size % factor:
        raise UserError(f"not divisible by the autoencoder's {factor}", setting="image_size", value=image_size)


def check_halvings(image_size: int, factor: int, halvings: int) -> None:
    """`UserError` for images whose latents a network of this many halvings cannot halve so often."""
    side, step = image_size // factor, 2**halvings
    if side % step == 0:
        return
    near = [n for n in (side // step * step, (side // step + 1) * step) if n]
    sizes = " or ".join(str(n * factor) for n in near)
    latents = f"latents of {side} x {side} (images over the autoencoder's {factor})"
    problem = f"{latents} cannot be halved {counted(halvings, 'time')}"
    remedy = f"take {sizes}, or fewer `block_out_channels`"
    raise UserError(problem, remedy=remedy, setting="image_size", value=image_size)


def note_other_size(autoencoder: Autoencoder, data: ImageData) -> None:
    """Log that an autoencoder was trained on images of another size, and what that costs in each step of a training."""
    own, size, factor = autoencoder.config.sample_size, data.image_size, autoencoder.factor
    if own is None or own == size or autoencoder.is_identity:
        return
    ratio = (size / own) ** 2
    cost = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
    attention = f"{ratio**2:.3g} times" if ratio > 1 else f"1/{1 / ratio**2:.3g} of"
    logger.warning(
        f"note: the autoencoder is of images of {own} x {own} pixels, these are brought to {size} x {size}: latents of "
        f"{size // factor} x {size // factor} in place of {own // factor} x {own // factor}, a step "
        f"costs about {cost} what it costs there ({attention} in attention), and details may be lost"
    )


class LatentSource:
    """The latents of a data set's training split, from a cache made when first needed, refused when stale.

    Pixels need no cache: they are read and augmented from the data set itself, by worker processes. Without a cache so
    are the images that are then encoded, at the price of one pass of the encoder each time.
    """

    def __init__(
        self, config: DiffusionRun | ClassifierRun, autoencoder: Autoencoder, data: ImageData, device: torch.device
    ) -> None:
        self.autoencoder, self.data, self.device = autoencoder, data, device
        self.workers, self.cache_device = config.training.dataloader_num_workers, config.cache_device
        latents, output_dir = config.latents, config.training.output_dir
        choose_cache_device(self.cache_device, device, 0, 0)  # refused, if so, before anything is made
        self.folder = folder = Path(latents) if latents else Path(output_dir) / "latents"
        self.labels = torch.tensor([data.label(index) for index in range(len(data))])
        check_divisible(data.image_size, autoencoder.factor)
        if autoencoder.is_identity and latents:
            raise UserError("a model of pixels takes no latent cache; leave it out", setting="latents", value=latents)
        self.online = latents == ONLINE
        if not (self.online or autoencoder.is_identity):
            check_cache_folder(folder)
            if (folder / "manifest.json").is_file():
                LatentCache.open(folder, CacheKey.of(autoencoder, data), cache_device="disk")

    def batches(self, plan: BatchPlan) -> Iterator[LatentBatch]:
        """Posterior moments in the plan's order, half of the examples flipped where the data set flips.

        The cache is made now, not at the first batch; not for a plan without steps.
        """
        if not len(plan):
            return iter(())
        if self.autoencoder.is_identity or self.online:
            return self._from_images(plan)
        cache = encode_latents(
            self.autoencoder,
            self.data,
            self.folder,
            batch_size=_ENCODE_BATCH,
            device=self.device,
            num_workers=self.workers,
            processes=current_processes(),
            cache_device=self.cache_device,
        )
        return self._from_cache(cache, plan)

    def skip_cache(self) -> bool:
        """Encode each batch anew, unless there is a cache already; whether so."""
        self.online = not self.autoencoder.is_identity and not (self.folder / "manifest.json").is_file()
        return self.online

    def _from_images(self, plan: BatchPlan) -> Iterator[LatentBatch]:
        for batch, keys in zip(image_batches(self.data, plan, self.workers), plan, strict=True):
            images = to_device(batch.images, self.device)
            mean, std = self._encode(images) if self.online else (images, None)
            yield LatentBatch(mean, std, batch.labels.to(self.device), keys)

    def _from_cache(self, cache: LatentCache, plan: BatchPlan) -> Iterator[LatentBatch]:
        for keys in plan:
            indices = torch.tensor([index for index, _ in keys])
            flips = torch.tensor([cache.has_flips and seed % 2 == 1 for _, seed in keys])
            mean, std = cache.moments(indices, flips)
            mean, std = self._to_device(mean), None if std is None else self._to_device(std)
            yield LatentBatch(mean, std, self.labels[indices].to(self.device), keys)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        encoding = self.autoencoder.encode(images)
        return encoding.mean.float(), None if encoding.std is None else encoding.std.float()

    def _to_device(self, values: Tensor) -> Tensor:
        return to_device(values, self.device).float()


class LatentTask(Task):
    """A training on the latents of images."""

    data: ImageData

    def __init__(
        self, config: DiffusionRun | ClassifierRun, data: ImageData, validation: ImageData, device: torch.device
    ) -> None:
        self.config, self.data, self.validation, self.device = config, data, validation, device
        self.autoencoder, self.autoencoder_folder = load_autoencoder(config.autoencoder, device, config.ignore_manifest)
        self.source, self.length = LatentSource(config, self.autoencoder, data, device), len(data)

    def batches(self, plan: BatchPlan) -> Iterator[LatentBatch]:
        """Posterior moments, labels and keys; the cache is made now if it is absent."""
        return self.source.batches(plan)

    def skip_cache(self) -> bool:
        return self.source.skip_cache()


@torch.no_grad()
def held_out_latents(autoencoder: Autoencoder, data: ImageData, indices: Sequence[int], device: torch.device) -> Tensor:
    """Posterior means (N, C, h, w) of these images of a split."""
    images = plain_batches(data, indices, 64, device)
    return torch.cat([autoencoder.encode(batch).mean.float() for batch in images])


def publish_shared(folder: Path, autoencoder: Autoencoder, source: Path | None, process: Process) -> None:
    """The autoencoder and the scheduler settings."""
    publish_autoencoder(folder, autoencoder, source)
    atomic_write_json(folder / "scheduler" / "scheduler_config.json", process.config())


def publish_autoencoder(folder: Path, autoencoder: Autoencoder, source: Path | None) -> None:
    """The folder that a frozen autoencoder was read from; its weights in memory where that has changed since."""
    if source is not None:
        with suppress(ValueError, OSError):
            copy_part(source, folder / "vae")
            if Autoencoder.from_pretrained(folder / "vae").fingerprint() == autoencoder.fingerprint():
                return
        logger.warning("%s has changed since the training began; the model keeps the autoencoder as it was", source)
        shutil.rmtree(folder / "vae", ignore_errors=True)
    autoencoder.save_pretrained(folder / "vae")
