"""A whole training step against the one of diffusers' examples, and its parts: EMA, optimiser, memory."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from autoencoders import Autoencoder
from ldm.data.shapes import ShapesData
from ldm.runtime.settings import find_config, read_settings
from ldm.training.averages import ExponentialMovingAverage
from ldm.training.loop import take_step
from ldm.training.optimizers import make_optimizer
from ldm.training.processes import make_accelerator
from ldm.training.randomness import BatchShard, StepRandom
from ldm.training.state import TrainingState
from ldm.training.tasks.diffusion import DiffusionModel, DiffusionTask
from ldm.training.tasks.latents import LatentBatch
from ldm.training.tasks.settings import AutoencoderRun, DiffusionRun
from tools.bench.models import fill, networks
from tools.bench.row import Benchmark, Pair, apart, row

Precision = Literal["no", "bf16"]

_PROBES = 4096  # weights compared of each tensor


class _Both:
    """The training loop of this toolkit and the loop body of diffusers' examples, from the same weights.

    Theirs, per step: noise and times drawn, `add_noise`, the U-Net, the mean squared error, `accelerator.backward`,
    `clip_grad_norm_`, AdamW, the learning rate's scheduler, `EMAModel.step`, and the loss read for the progress bar.
    """

    def __init__(self, benchmark: Benchmark, batch: int, network: str, precision: Precision) -> None:
        suffix = "" if network == "cifar10-gpu" else "-cpu"
        run = read_settings(DiffusionRun, find_config(f"cifar10/diffusion{suffix}"))
        size, self.precision = batch, precision
        vae = Autoencoder(read_settings(AutoencoderRun, find_config(f"cifar10/autoencoder{suffix}")).autoencoder)
        folder = benchmark.folder()
        vae.save_pretrained(folder / "vae")
        data = ShapesData("train", 32, size=(256, 64))
        training = dataclasses.replace(
            run.training,
            output_dir=str(folder / "run"),
            train_batch_size=size,
            lr_warmup_steps=0,
            lr_scheduler="constant",
            mixed_precision=precision,
            compile=benchmark.compile,
        )
        conditioning = dataclasses.replace(run.conditioning, text_encoder=None, class_conditional=True)
        run = dataclasses.replace(
            run,
            training=training,
            conditioning=conditioning,
            diffusion=dataclasses.replace(run.diffusion, snr_gamma=None),  # theirs is unweighted
            autoencoder=str(folder / "vae"),
        )
        task = DiffusionTask(run, data, data, benchmark.device)
        fill(task.model)
        task.model.unet.save_pretrained(folder / "unet")
        shard = BatchShard(size)
        self.random = StepRandom(training.seed, 0, 0, shard, benchmark.device)
        self.training = TrainingState(task, training, make_accelerator(training, benchmark.device), shard, None)
        shape = task.model.unet.config
        latents = benchmark.randn(size, shape.in_channels, shape.sample_size or 1, shape.sample_size or 1)
        labels = torch.arange(size, device=benchmark.device) % len(data.class_names)
        self.batch = LatentBatch(latents, 0.01 * torch.ones_like(latents), labels, [(i, 0) for i in range(size)])
        self.batches = itertools.repeat(self.batch)
        self.null = len(data.class_names)
        self.dropout = run.conditioning.condition_dropout
        self._their_side(benchmark, training, folder / "unet", task.process.config())

    def _their_side(self, benchmark: Benchmark, training: Any, folder: Any, scheduler: dict[str, Any]) -> None:
        self.accelerator = Accelerator(cpu=benchmark.device.type == "cpu", mixed_precision=self.precision)
        unet = UNet2DConditionModel.from_pretrained(folder).train()
        self.average = EMAModel(
            unet.parameters(), decay=training.ema_decay, model_cls=UNet2DConditionModel, model_config=unet.config
        )
        self.average.to(self.accelerator.device)
        optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            weight_decay=training.adam_weight_decay,
            eps=training.adam_epsilon,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        self.unet, self.optimizer, self.schedule = self.accelerator.prepare(
            benchmark.compiled(unet), optimizer, schedule
        )
        self.scheduler = DDPMScheduler.from_config(scheduler)
        self.norm, self.last = training.max_grad_norm, 0.0

    def ours(self) -> None:
        take_step(self.training, self.batches)

    def theirs(self, draws: tuple[Tensor, ...] | None = None) -> None:
        batch = self.batch
        with self.accelerator.accumulate(self.unet):
            assert batch.std is not None
            size, device = len(batch.mean), batch.mean.device
            posterior, noise, t, dropped = draws or (
                torch.randn_like(batch.mean),
                torch.randn_like(batch.mean),
                torch.randint(1000, (size,), device=device),
                torch.rand(size, device=device),
            )
            latents = batch.mean + batch.std * posterior
            noisy = self.scheduler.add_noise(latents, noise, t)
            labels = torch.where(dropped < self.dropout, self.null, batch.labels)
            target = self.scheduler.get_velocity(latents, noise, t)
            predicted = self.unet(noisy, t, None, class_labels=labels).sample
            loss = F.mse_loss(predicted.float(), target.float())
            self.last = self.accelerator.gather(loss.repeat(size)).mean().item()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), self.norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.average.step(self.unet.parameters())

    def difference(self) -> float:
        """Of the first step's gradients, as the optimisers keep them: both sides with the random numbers of ours."""
        random, mean = self.random, self.batch.mean
        draws = (
            random.normal("posterior", mean.shape[1:]),
            random.normal("eps", mean.shape[1:]),
            random.integers("time", 1000),
            random.uniform("dropout"),
        )
        self.ours()
        self.theirs(draws)
        theirs = dict(self.accelerator.unwrap_model(self.unet).named_parameters())
        mine = dict(cast(DiffusionModel, self.training.model).unet.named_parameters())

        def moments(optimizer: Any, weights: dict[str, Any]) -> Tensor:
            state = getattr(optimizer, "optimizer", optimizer).state
            return torch.cat([state[weights[name]]["exp_avg"].flatten()[:_PROBES] for name in sorted(mine)])

        return apart(moments(self.training.optimizer, mine), moments(self.optimizer, theirs))


def _step(benchmark: Benchmark, batch: int, network: str = "cifar10", precision: Precision = "no") -> Pair:
    both = _Both(benchmark, batch, network, precision)
    weights = 4.0 * sum(weight.numel() for weight in both.training.model.parameters())
    # weights read twice, gradients written and read twice, AdamW's two moments and the average read and written
    return Pair(
        both.ours, both.theirs, both.difference, tolerance=1e-4 if precision == "no" else 5e-2, bytes=12 * weights
    )


@row("step-small", "training step, CIFAR-10 U-Net, batch 4", goal=1.25, floor=1.15, compiles=True)
def step_small(benchmark: Benchmark) -> Pair:
    return _step(benchmark, 4)


@row("step", "training step, CIFAR-10 U-Net, batch 32", goal=1.25, floor=1.05, compiles=True)
def step(benchmark: Benchmark) -> Pair:
    return _step(benchmark, 32)


@row("step-memory", "peak memory of that step", goal=1.0, memory=True)
def step_memory(benchmark: Benchmark) -> Pair:
    return _step(benchmark, 32)


@row("ema", "EMA update of the CIFAR-10 U-Net", goal=2.0)
def ema(benchmark: Benchmark) -> Pair:
    both = networks(benchmark, "cifar10", 1)
    average = ExponentialMovingAverage(both.ours, 0.999)
    theirs = EMAModel(both.theirs.parameters(), decay=0.999)
    theirs.to(benchmark.device)
    count = itertools.count()

    def difference() -> float:
        sides: list[Any] = [both.ours, both.theirs]
        moved = [copy.deepcopy(list(network.parameters())) for network in sides]
        for network in sides:
            for weight in network.parameters():
                weight.data.mul_(1.5)
        theirs.optimization_step = 9  # the 10th: (1 + 9) / (10 + 9), where ours counts from 0
        theirs.step(both.theirs.parameters())
        average.update(both.ours, 9)
        names = [name for name, _ in both.theirs.named_parameters()]
        mine = dict(average.model.named_parameters())
        difference = apart(
            torch.cat([mine[name].flatten() for name in names]),
            torch.cat([shadow.flatten() for shadow in theirs.shadow_params]),
        )
        for network, weights in zip(sides, moved, strict=True):
            for weight, before in zip(network.parameters(), weights, strict=True):
                weight.data.copy_(before)
        return difference

    ours: Callable[[], None] = lambda: average.update(both.ours, next(count))  # noqa: E731
    moved = 3 * 4.0 * sum(weight.numel() for weight in both.ours.parameters())
    return Pair(ours, lambda: theirs.step(both.theirs.parameters()), difference, flops=0, bytes=moved)


@row("optimizer", "AdamW step of the CIFAR-10 U-Net, against the one of diffusers' examples")
def optimizer(benchmark: Benchmark) -> Pair:
    both = networks(benchmark, "cifar10", 1, train=True)
    run = read_settings(DiffusionRun, find_config("cifar10/diffusion-cpu")).training
    mine = make_optimizer(both.ours, run)
    theirs = torch.optim.AdamW(
        both.theirs.parameters(),
        lr=run.learning_rate,
        betas=(run.adam_beta1, run.adam_beta2),
        weight_decay=0.0,
        eps=run.adam_epsilon,
    )
    named = dict(both.theirs.named_parameters())
    for name, weight in both.ours.named_parameters():
        weight.grad = torch.cos(1e3 * weight.detach())
        named[name].grad = weight.grad.contiguous().clone()

    def difference() -> float:
        mine.step()
        theirs.step()
        pairs = [(weight, named[name]) for name, weight in both.ours.named_parameters()]
        return apart(torch.cat([a.flatten() for a, _ in pairs]), torch.cat([b.flatten() for _, b in pairs]))

    moved = 7 * 4.0 * sum(weight.numel() for weight in both.ours.parameters())
    return Pair(mine.step, theirs.step, difference, flops=0, bytes=moved)
