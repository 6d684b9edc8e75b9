"""Training the noisy classifier that guides sampling (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autoencoders.distributed import over_processes
from ldm.data import DataConfig, ImageData
from ldm.data.cache_device import CacheDevice
from ldm.data.selection import shuffled_indices
from ldm.models.classifier import ClassifierConfig, NoisyClassifier
from ldm.runtime.errors import UserError, at_least
from ldm.runtime.files import atomic_folder, atomic_write_json
from ldm.sampling.forward_process import Process
from ldm.sampling.model_folder import read_scheduler
from ldm.training.adversary import Loss
from ldm.training.config import TrainingConfig, config_facts
from ldm.training.randomness import BatchPlan, StepRandom
from ldm.training.tasks.diffusion import publish_shared
from ldm.training.tasks.latents import (
    DiffusionConfig,
    LatentBatch,
    LatentSource,
    held_out_latents,
    load_autoencoder,
)
from samplers import DiscreteSchedule, EpsilonTarget


@dataclass(frozen=True)
class ClassifierRun:
    """`ldm train classifier`: the class of a latent at any noise level, for classifier guidance."""

    dataset: DataConfig = field(default_factory=DataConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    autoencoder: str = ""
    """Folder of a trained autoencoder, or of the diffusion model to be guided, whose noise schedule is then taken (that
    of Stable Diffusion for a flow or EDM model, which is guided at the times of equal log-SNR); identity: pixels."""
    latents: str = ""
    """Folder of the latent cache, made when absent; unset: <output-dir>/latents; none: encode each batch anew, which
    takes random crops and no disk."""
    cache_device: CacheDevice = "auto"
    """Where the latents are while training: cuda, cpu (memory), disk (memory-mapped), or auto, the first of these that
    has the room. The training is the same."""
    validation_images: int = 512
    """Held-out images on which the accuracy is measured at each noise level."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=1)


class ClassifierTask:
    """Cross-entropy at uniform times on noised latents."""

    kind = "classifier"

    def __init__(self, config: ClassifierRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        self.config, self.data, self.validation, self.device = config, data, validation, device
        if len(data.class_names) < 2:
            raise UserError(
                "a classifier needs two classes or more",
                remedy="these images have no labels",
                setting="data",
                value=data.name,
            )
        self.autoencoder, self.autoencoder_folder = load_autoencoder(config.autoencoder, device)
        root = Path(config.autoencoder)
        process = read_scheduler(root) if (root / "scheduler").is_dir() else config.diffusion.process()
        schedule = process.schedule
        if schedule.family != DiscreteSchedule.family:  # guidance finds the time of the same log-SNR
            schedule = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
            process = Process(schedule, EpsilonTarget())
        self.process, self.schedule = process, schedule
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            built = dataclasses.replace(
                config.classifier,
                in_channels=self.autoencoder.latent_channels,
                sample_size=data.image_size // self.autoencoder.factor,
                num_classes=len(data.class_names),
            )
            try:
                self.model = NoisyClassifier(built)
            except ValueError as error:
                raise UserError(f"classifier settings: {error}") from None
        training = config.training
        place = training.output_dir, device, training.dataloader_num_workers, config.cache_device
        self.source = LatentSource(self.autoencoder, data, config.latents, *place)
        self.length = len(data)
        self.facts: dict[str, Any] = {
            "data": data.fingerprint,
            "autoencoder": self.autoencoder.fingerprint(),
            "classifier": dataclasses.asdict(built),
            "schedule": self.schedule.config(),
            **({"latents": "none"} if self.source.online else {}),
            "training": config_facts(config.training),
        }

    def batches(self, plan: BatchPlan) -> Iterator[LatentBatch]:
        """Posterior moments and labels; the cache is made now if it is absent."""
        return self.source.batches(plan)

    def loss(self, model: nn.Module, batch: LatentBatch, random: StepRandom) -> Loss:
        """-log p(y | x_t, t); unlabelled examples do not count."""
        x0 = batch.sample(random)  # (B, C, h, w)
        eps = random.normal("eps", x0.shape[1:])
        t = random.integers("time", self.schedule.num_train_timesteps).to(x0.dtype)  # (B,)
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.at(t))
        logits = model(alpha * x0 + sigma * eps, t).float()  # (B, K)
        # of all processes: their labelled examples count alike
        counted = over_processes((batch.labels >= 0).sum().to(x0.dtype)).clamp_min(1e-6)
        total = cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum") / counted
        right = (logits.argmax(-1) == batch.labels).sum() / counted
        return Loss(total, {"accuracy": right})

    def validate(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy on held-out images at ten times from 0 to T-1 (and their log-SNR), with fixed noise."""
        chosen = shuffled_indices(len(self.validation), self.config.validation_images)
        x0 = held_out_latents(self.autoencoder, self.validation, chosen, self.device)
        labels = torch.tensor([self.validation.label(index) for index in chosen], device=self.device)
        x0, labels = x0[labels >= 0], labels[labels >= 0]
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        table = []
        for time in torch.linspace(0, self.schedule.num_train_timesteps - 1, 10).round().tolist():
            level = self.schedule.level(time)
            noisy = level.alpha * x0 + level.sigma * eps
            logits = [model(part, torch.full((len(part),), time, device=self.device)) for part in noisy.split(128)]
            right = (torch.cat(logits).argmax(-1) == labels).float().mean()
            table.append({"t": time, "noise_ratio": round(level.noise_ratio, 4), "accuracy": round(float(right), 4)})
        accuracies = [row["accuracy"] for row in table]
        return {"accuracy_at_least_noise": accuracies[0], "accuracy": sum(accuracies) / 10, "accuracy_by_noise": table}

    def preview(self, model: nn.Module) -> Tensor | None:
        """A classifier makes no pictures."""
        return None

    def publish(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, NoisyClassifier)
        publish_shared(folder, self.autoencoder, self.autoencoder_folder, self.process)
        with atomic_folder(folder / "classifier") as target:
            model.save_pretrained(target)
            facts = {"autoencoder": self.autoencoder.fingerprint(), "schedule": self.schedule.config()}
            atomic_write_json(target / "facts.json", {**facts, "class_names": list(self.data.class_names)})
