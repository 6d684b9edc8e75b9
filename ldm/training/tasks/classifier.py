"""Training the noisy classifier that guides sampling (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ldm.data.dataset import ImageData
from ldm.data.selection import shuffled_indices
from ldm.models.classifier import NoisyClassifier
from ldm.models.size import build_within
from ldm.runtime.distributed import current_processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json
from ldm.sampling.forward_process import Process
from ldm.sampling.model_folder import read_scheduler
from ldm.training.randomness import StepRandom
from ldm.training.task import Loss
from ldm.training.tasks.latents import (
    LatentBatch,
    LatentTask,
    check_halvings,
    held_out_latents,
    make_process,
    note_other_size,
    publish_shared,
)
from ldm.training.tasks.settings import ClassifierRun
from samplers import DiscreteSchedule, EpsilonTarget


class ClassifierTask(LatentTask):
    """Cross-entropy at uniform times on noised latents."""

    kind = "classifier"
    model: NoisyClassifier
    config: ClassifierRun

    def __init__(self, config: ClassifierRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        if len(data.class_names) < 2:
            raise UserError("these images have no labels of two classes or more", setting="data", value=data.name)
        super().__init__(config, data, validation, device)
        root = Path(config.autoencoder)
        process = read_scheduler(root) if (root / "scheduler").is_dir() else make_process(config.diffusion)
        schedule = process.schedule
        if schedule.family != DiscreteSchedule.family:  # guidance finds the time of the same log-SNR
            schedule = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
            process = Process(schedule, EpsilonTarget())
        self.process, self.schedule = process, schedule
        check_halvings(data.image_size, self.autoencoder.factor, len(config.classifier.block_out_channels) - 1)
        note_other_size(self.autoencoder, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            built = dataclasses.replace(
                config.classifier,
                in_channels=self.autoencoder.latent_channels,
                sample_size=data.image_size // self.autoencoder.factor,
                num_classes=len(data.class_names),
            )
            try:
                self.model = build_within(config.training.max_parameters, lambda: NoisyClassifier(built))
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"classifier settings: {error}") from None
        self.fingerprint = {
            "data": data.fingerprint,
            "autoencoder": self.autoencoder.fingerprint(),
            "classifier": dataclasses.asdict(built),
            "schedule": self.schedule.config(),
            **({"latents": "none"} if self.source.online else {}),
            "training": config.training.fingerprint(),
        }

    def loss(self, model: nn.Module, batch: LatentBatch, random: StepRandom) -> Loss:
        """-log p(y | x_t, t); unlabelled examples do not count."""
        x0 = batch.sample(random)  # (B, C, h, w)
        eps = random.normal("eps", x0.shape[1:])
        t = random.integers("time", self.schedule.num_train_timesteps).to(x0.dtype)  # (B,)
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.at(t))
        logits = model(alpha * x0 + sigma * eps, t).float()  # (B, K)
        labelled = (batch.labels >= 0).sum().to(x0.dtype)
        labelled = current_processes().mean(labelled).clamp_min(1e-6)  # so that those of all processes count alike
        total = cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum") / labelled
        correct = (logits.argmax(-1) == batch.labels).sum() / labelled
        return Loss(total, {"accuracy": correct})

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
            correct = (torch.cat(logits).argmax(-1) == labels).float().mean()
            table.append({"t": time, "noise_ratio": round(level.noise_ratio, 4), "accuracy": round(float(correct), 4)})
        accuracies = [row["accuracy"] for row in table]
        return {"accuracy_at_least_noise": accuracies[0], "accuracy": sum(accuracies) / 10, "accuracy_by_noise": table}

    def publish(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, NoisyClassifier)
        publish_shared(folder, self.autoencoder, self.autoencoder_folder, self.process)
        model.save_pretrained(folder / "classifier")
        metadata = {"autoencoder": self.autoencoder_fingerprint, "schedule": self.schedule.config()}
        metadata["class_names"] = list(self.data.class_names)
        atomic_write_json(folder / "classifier" / "facts.json", metadata)
