"""Training a noise-prediction U-Net, and its text encoder, on cached latents with condition dropout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders import class_of
from ldm.conditioning.conditioner import Conditioner
from ldm.data.dataset import ImageData
from ldm.data.report import DataReport
from ldm.data.selection import shuffled_indices
from ldm.evaluation.periodic import PeriodicEvaluator
from ldm.evaluation.periodic_config import DiffusionEvalConfig
from ldm.models.backbone import Backbone
from ldm.models.size import build_within
from ldm.models.unet import UNet
from ldm.runtime.errors import UserError
from ldm.sampling.config import SamplingConfig
from ldm.sampling.denoiser import split_variance
from ldm.sampling.model_folder import write_index
from ldm.sampling.pipeline import Pipeline
from ldm.training.evaluations import preserve_requires_grad
from ldm.training.randomness import StepRandom
from ldm.training.task import Loss
from ldm.training.tasks.conditions import TrainingConditions
from ldm.training.tasks.latents import (
    LatentBatch,
    LatentTask,
    check_halvings,
    held_out_latents,
    make_process,
    note_other_size,
    publish_shared,
)
from ldm.training.tasks.learned_variance import VarianceLoss
from ldm.training.tasks.objective import Objective
from ldm.training.tasks.settings import DiffusionRun
from samplers import DiscreteSchedule


class DiffusionModel(nn.Module):
    """What is trained together: the U-Net and, where the text encoder is embedded, that too."""

    def __init__(self, unet: Backbone, conditioner: Conditioner) -> None:
        super().__init__()
        self.unet, self.conditioner = unet, conditioner

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None, tokens: Tensor | None) -> Tensor:
        """Network output (B, C or 2 C, h, w) for x (B, C, h, w) at times t (B,)."""
        condition = self.conditioner(labels, tokens)
        return self.unet(x, t, class_labels=condition.class_labels, context=condition.context)


class DiffusionTask(LatentTask):
    """Mean squared error of the prediction at uniform times, with condition dropout a sample."""

    kind = "diffusion"
    model: DiffusionModel
    config: DiffusionRun

    def __init__(self, config: DiffusionRun, data: ImageData, validation: ImageData, device: torch.device) -> None:
        super().__init__(config, data, validation, device)
        check_halvings(data.image_size, self.autoencoder.factor, len(config.unet.block_out_channels) - 1)
        note_other_size(self.autoencoder, data)
        self.process = make_process(config.diffusion)
        self.objective = Objective(config.objective, self.process, config.diffusion.snr_gamma)
        self.schedule = self.process.schedule
        self.variance_loss: VarianceLoss | None = None
        if isinstance(self.schedule, DiscreteSchedule) and self.process.learned_variance:
            self.variance_loss = VarianceLoss(self.schedule, pixels=self.autoencoder.is_identity, device=device)
        seed, first = config.training.seed, config.first_caption_probability
        self.conditions = TrainingConditions(config.conditioning, data, first, seed)
        conditioner = self.conditions.conditioner
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet_config = dataclasses.replace(
                config.unet,
                in_channels=self.autoencoder.latent_channels,
                out_channels=self.autoencoder.latent_channels * (2 if self.variance_loss else 1),
                sample_size=data.image_size // self.autoencoder.factor,
                num_class_embeds=conditioner.num_class_embeds,
                cross_attention_dim=conditioner.context_dim,
            )
            try:
                unet = build_within(config.training.max_parameters, lambda: UNet(unet_config))
                self.model = DiffusionModel(unet, conditioner)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"unet settings: {error}") from None
        self.model.unet.gradient_checkpointing = config.training.gradient_checkpointing
        self.averages = config.averages.within(config.training.max_train_steps)
        self.evaluator = self._make_evaluator(config.evaluation)
        self.fingerprint = {
            "data": data.fingerprint,
            "autoencoder": self.autoencoder.fingerprint(),
            "unet": unet_config.to_diffusers(),
            "conditioning": config.conditioning.fingerprint(),
            "diffusion": config.diffusion.fingerprint(),
            "first_caption_probability": first,
            **({"latents": "none"} if self.source.online else {}),
            **config.averages.fingerprint(),
            **({"objective": objective} if (objective := config.objective.fingerprint()) else {}),
            "training": config.training.fingerprint(),
        }

    @property
    def report(self) -> DataReport | None:
        return self.conditions.added_to(super().report)

    def loss(self, model: nn.Module, batch: LatentBatch, random: StepRandom) -> Loss:
        """E || target - f(x_t, t, c) ||^2 (Ho et al. 2020, eq. 14), weighted by noise level on request; plus the loss
        of the variance where that is learned.
        """
        x0 = batch.sample(random)  # (B, C, h, w)
        eps, input_eps = self.objective.noise(tuple(x0.shape[1:]), random)
        t = self.objective.times(random).to(x0.dtype)  # (B,)
        labels, tokens = self.conditions.of_batch(batch.labels, batch.keys, random)
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.at(t))  # (B, 1, 1, 1)
        x = alpha * x0 + sigma * input_eps
        net_input, c_noise = self.process.precondition(x, t, alpha, sigma)
        output, fraction = split_variance(model(net_input, c_noise, labels, tokens).float(), x0.shape[1])
        target = self.process.prediction.target(x0, eps, alpha, sigma)
        error = (output - target).square().mean((1, 2, 3))  # (B,)
        weight = self.objective.weight(alpha, sigma)
        total = error.mean() if weight is None else (weight.flatten() * error).mean()
        if self.variance_loss is None or fraction is None:
            return Loss(total, {} if weight is None else {"mse": error.mean()})
        x0_hat = self.process.prediction.x0(output.detach(), x, alpha, sigma)
        variance_loss = self.variance_loss(x0, x0_hat, fraction, t).mean()
        return Loss(total + variance_loss, {"mse": error.mean(), "variance_loss": variance_loss})

    def validate(self, model: nn.Module) -> dict[str, Any]:
        """The unweighted loss on held-out latents with fixed noise at spread times, whole, by quarters and tenths."""
        assert isinstance(model, DiffusionModel)
        chosen = shuffled_indices(len(self.validation), self.config.validation_images)
        x0 = held_out_latents(self.autoencoder, self.validation, chosen, self.device)
        count, steps = len(x0), self.config.diffusion.num_train_timesteps
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        t = torch.linspace(0, steps - 1, count, device=self.device).round()
        labels = [self.validation.label(index) for index in chosen]
        texts = [(self.validation.captions(index) or ("",))[0] for index in chosen]
        conditioner, errors = model.conditioner, []
        for part in torch.arange(count).split(64):
            condition = conditioner.encode(
                [None if labels[index] < 0 else labels[index] for index in part] if conditioner.num_classes else None,
                [texts[index] for index in part] if conditioner.has_text else None,
            )
            alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule.at(t[part]))
            net_input, c_noise = self.process.precondition(alpha * x0[part] + sigma * eps[part], t[part], alpha, sigma)
            output = model.unet(net_input, c_noise, class_labels=condition.class_labels, context=condition.context)
            output, _ = split_variance(output, x0.shape[1])
            target = self.process.prediction.target(x0[part], eps[part], alpha, sigma)
            errors.append((output - target).square().mean((1, 2, 3)))
        error = torch.cat(errors)  # (N,)
        quarters = [float(part.mean()) for part in error.tensor_split(4)]
        table = []
        for times, part in zip(t.tensor_split(10), error.tensor_split(10), strict=True):
            if len(part):
                middle = self.schedule.level(float(times.mean()))
                table.append({"t": round(middle.t, 1), "noise_ratio": middle.noise_ratio, "loss": float(part.mean())})
        return {
            "validation_loss": float(error.mean()),
            "validation_loss_by_noise_quarter": quarters,
            "validation_loss_by_noise": table,
        }

    def _make_evaluator(self, config: DiffusionEvalConfig) -> PeriodicEvaluator | None:
        if not config.eval_every:
            return None
        reference = self.validation if config.eval_split == "validation" else self.data
        with preserve_requires_grad(self.model):
            return PeriodicEvaluator(config, reference, self.data, self.pipeline(self.model))

    def pipeline(self, model: nn.Module) -> Pipeline:
        """The model as it stands, ready to sample; it is frozen (see `preserve_requires_grad`)."""
        assert isinstance(model, DiffusionModel)
        return Pipeline(self.autoencoder, model.unet, model.conditioner, self.process, device=self.device)

    def preview(self, model: nn.Module) -> Tensor | None:
        """Samples on fixed seeds for the conditions of the first held-out images, the classes in turn."""
        if not self.config.preview_images:
            return None
        assert isinstance(model, DiffusionModel)
        conditioner = model.conditioner
        count = self.config.preview_images
        requests = self.conditions.of_preview(self.validation, range(min(count, len(self.validation))), count)
        guided = conditioner.dropout > 0 and (conditioner.has_text or conditioner.num_classes > 0)
        scale = self.config.preview_guidance_scale
        sampling = SamplingConfig(
            num_inference_steps=min(self.config.preview_steps, self.config.diffusion.num_train_timesteps),
            guidance_scale=scale if guided else 1.0,
        )
        with preserve_requires_grad(model):
            return torch.cat(list(self.pipeline(model).generate(requests, sampling)))

    def publish(self, model: nn.Module, folder: Path) -> None:
        """Write the model folder."""
        assert isinstance(model, DiffusionModel)
        publish_shared(folder, self.autoencoder, self.autoencoder_folder, self.process)
        model.unet.save_pretrained(folder / "unet")
        model.conditioner.save_pretrained(folder)
        index, scheduler = model.conditioner.index_entries(), self.process.config()["_class_name"]
        decay = self.config.training.ema_decay
        weights = f"EMA of decay {decay:g}" if decay else "of the last step (no EMA)"
        write_index(folder, index, class_of(self.autoencoder.config), scheduler, weights)
