"""What diffusion and classifier trainings share: cached latents, labels and noise levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from autoencoders import Autoencoder, AutoencoderConfig
from ldm.data import ImageData
from ldm.data.cache_device import CacheDevice, choose_cache_device
from ldm.data.latent_cache import CacheKey, LatentCache, check_cache_folder, encode_latents
from ldm.data.selection import plain_batches, to_device
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError, at_least
from ldm.sampling.forward_process import Process
from ldm.training.randomness import BatchPlan, StepRandom
from ldm.training.tasks.autoencoder import image_batches
from samplers import TARGETS, DiscreteSchedule, EDMSchedule, EDMTarget, FlowSchedule, FlowTarget, targets_on

IDENTITY = "identity"  # what `autoencoder` is called where the latents are the pixels
ONLINE = "none"  # what `latents` is called where there is no cache
_ENCODE_BATCH = 64


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and what the network predicts."""

    beta_schedule: Literal["linear", "scaled_linear", "cosine", "flow", "edm"] = "scaled_linear"
    """linear: linear in beta; scaled_linear: linear in sqrt(beta) (Stable Diffusion); cosine: clipped at 0.999; flow:
    rectified flow; edm: x0 + sigma * eps with sigma from 0.002 to 80 (Karras et al. 2022)."""
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    """Unused by cosine, flow and edm."""
    beta_end: float = 0.012
    """Unused by cosine, flow and edm."""
    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample", "flow_prediction", "edm"] = "auto"
    """What the U-Net predicts: epsilon, the noise; v_prediction, the velocity alpha * eps - sigma * x0; sample, x0;
    flow_prediction, the velocity eps - x0; edm, with Karras' preconditioning. auto: epsilon, and on flow and edm
    theirs, the only ones that they take."""
    snr_gamma: float | None = None
    """min-SNR weighting of the loss with this gamma (5 in the paper); unset: unweighted."""

    def __post_init__(self) -> None:
        at_least(self, num_train_timesteps=2)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(f"need 0 < `beta_start` <= `beta_end` < 1, got {self.beta_start} and {self.beta_end}")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise UserError(f"must be above 0, got {self.snr_gamma}", setting="snr_gamma")
        if self.prediction_type not in ("auto", *self._targets):
            raise UserError(
                f"with `beta_schedule` {self.beta_schedule} it must be {' or '.join(self._targets)}",
                setting="prediction_type",
                value=self.prediction_type,
            )

    def process(self) -> Process:
        """The noise schedule that these settings describe, with the target."""
        if self.beta_schedule == "flow":
            return Process(FlowSchedule(self.num_train_timesteps), FlowTarget())
        if self.beta_schedule == "edm":
            return Process(EDMSchedule(num_train_timesteps=self.num_train_timesteps), EDMTarget(sigma_data=1.0))
        schedule = DiscreteSchedule(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        return Process(
            schedule, TARGETS[self._targets[0] if self.prediction_type == "auto" else self.prediction_type]()
        )

    @property
    def _targets(self) -> tuple[str, ...]:
        """What a network may predict under this schedule, the default first."""
        return targets_on(self.beta_schedule if self.beta_schedule in ("flow", "edm") else DiscreteSchedule.family)


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


def load_autoencoder(folder: str, device: torch.device) -> tuple[Autoencoder, Path | None]:
    """The autoencoder of a run, model or `vae` folder, frozen, with the folder that holds it.

    "identity" is the one without a folder, of diffusion in pixels: its latents are the images in [-1, 1] as they are,
    with no calibration, as in Ho et al. 2020, section 3.3.
    """
    if folder == IDENTITY:
        return Autoencoder(AutoencoderConfig(bottleneck="identity")).to(device).eval(), None
    root = Path(folder)
    if not root.exists():
        raise UserError(
            "no such folder",
            remedy="give the output folder of `ldm train autoencoder`, or identity",
            setting="autoencoder",
            value=folder,
        )
    path = root / "vae" if (root / "vae").is_dir() else root
    config = path / "config.json"
    if not config.is_file():
        raise UserError(
            "no vae/config.json in it",
            remedy="give the folder of a trained autoencoder",
            setting="autoencoder",
            value=folder,
        )
    try:
        autoencoder = Autoencoder.from_pretrained(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{error}", setting="autoencoder", value=folder) from None
    return autoencoder.to(device).eval().requires_grad_(False), path


def is_identity(autoencoder: Autoencoder) -> bool:
    """Whether the latents are the pixels."""
    return autoencoder.config.bottleneck == "identity"


class LatentSource:
    """The latents of a data set's training split, from a cache made when first needed, refused when stale.

    Pixels need no cache: they are read and augmented from the data set itself, by `workers` processes. Without a cache,
    on request, so are the images that are then encoded, at the price of one pass of the encoder each time.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        data: ImageData,
        latents: str,
        output_dir: str,
        device: torch.device,
        workers: int,
        place: CacheDevice = "auto",
    ) -> None:
        self.autoencoder, self.data, self.device, self.workers = autoencoder, data, device, workers
        self.place: CacheDevice = place
        choose_cache_device(place, device, 0, 0)  # refused, if so, before anything is made
        self.folder = folder = Path(latents) if latents else Path(output_dir) / "latents"
        self.labels = torch.tensor([data.label(index) for index in range(len(data))])
        if data.image_size % autoencoder.factor:
            raise UserError(
                f"not divisible by the autoencoder's {autoencoder.factor}", setting="image_size", value=data.image_size
            )
        self.online = latents == ONLINE and not is_identity(autoencoder)
        if self.online:
            return
        if is_identity(autoencoder):
            if latents:
                raise UserError(
                    "a model of pixels takes no latent cache", remedy="leave it out", setting="latents", value=latents
                )
            return
        check_cache_folder(folder)
        if (folder / "manifest.json").is_file():
            LatentCache.open(folder, CacheKey.of(autoencoder, data), cache_device="disk")

    def batches(self, plan: BatchPlan) -> Iterator[LatentBatch]:
        """Posterior moments in the plan's order, half of the examples flipped where the data set flips.

        The cache is made now, not when the first batch is asked for; not for a plan without steps.
        """
        if not len(plan):
            return iter(())
        if is_identity(self.autoencoder) or self.online:
            return self._from_images(plan)
        cache = encode_latents(
            self.autoencoder,
            self.data,
            self.folder,
            batch_size=_ENCODE_BATCH,
            device=self.device,
            num_workers=self.workers,
            processes=current_processes(),
            cache_device=self.place,
        )
        return self._from_cache(cache, plan)

    def write_nothing(self) -> None:
        """Encode each batch by itself, unless a cache is there already."""
        self.online = not is_identity(self.autoencoder) and not (self.folder / "manifest.json").is_file()

    def _from_images(self, plan: BatchPlan) -> Iterator[LatentBatch]:
        for batch, keys in zip(image_batches(self.data, plan, self.workers), plan, strict=True):
            images = to_device(batch.images, self.device)
            mean, std = self._encoded(images) if self.online else (images, None)
            yield LatentBatch(mean, std, batch.labels.to(self.device), keys)

    def _from_cache(self, cache: LatentCache, plan: BatchPlan) -> Iterator[LatentBatch]:
        for keys in plan:
            indices = torch.tensor([index for index, _ in keys])
            flips = torch.tensor([cache.has_flips and seed % 2 == 1 for _, seed in keys])
            mean, std = cache.moments(indices, flips)
            mean, std = self._placed(mean), None if std is None else self._placed(std)
            yield LatentBatch(mean, std, self.labels[indices].to(self.device), keys)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        encoding = self.autoencoder.encode(images)
        return encoding.mean.float(), None if encoding.std is None else encoding.std.float()

    def _placed(self, values: Tensor) -> Tensor:
        return to_device(values, self.device).float()


@torch.no_grad()
def held_out_latents(autoencoder: Autoencoder, data: ImageData, indices: Sequence[int], device: torch.device) -> Tensor:
    """Posterior means (N, C, h, w) of these images of a split."""
    images = plain_batches(data, indices, 64, device)
    return torch.cat([autoencoder.encode(batch).mean.float() for batch in images])
