"""Sampling runs and sampler steps against diffusers' loops and schedulers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor

from autoencoders import Autoencoder
from ldm.conditioning.conditioner import Conditioner
from ldm.models.unet import UNet
from ldm.runtime.settings import find_config, read_settings
from ldm.sampling.config import Request, ResolvedSampling, SamplingConfig
from ldm.sampling.pipeline import Pipeline
from ldm.training.tasks.latents import make_process
from ldm.training.tasks.settings import AutoencoderRun
from samplers import DiscreteSchedule, Prediction, SampleNoise, get_sampler, make_levels
from tools.bench.models import fill, settings, shape_of
from tools.bench.row import Benchmark, Pair, apart, row

_STEPS, _SCALE, _SEED = 25, 3.0, 1
_PROMPTS = ("a large red circle on blue", "a small green star on white", "a yellow square", "a ring")


class _Both:
    """A text-to-image model of the quick start's shape as our pipeline, and as the loop that diffusers' pipelines run.

    Theirs: the prompts' and the null text's states, then at every step a batch of twice the pictures, `scheduler.step`
    of `DDIMScheduler` made from our scheduler_config.json, and the decoder. Both use one text encoder and one decoder.
    """

    def __init__(self, benchmark: Benchmark, batch: int, sampling: SamplingConfig) -> None:
        run = settings("quickstart")
        autoencoder = Autoencoder(read_settings(AutoencoderRun, find_config("quickstart/autoencoder")).autoencoder)
        conditioner = Conditioner.build(run.conditioning, (), _PROMPTS * 4)
        unet = UNet(dataclasses.replace(shape_of("quickstart"), cross_attention_dim=conditioner.context_dim))
        fill(unet)
        folder = benchmark.folder()
        unet.save_pretrained(folder)
        process = make_process(run.diffusion)
        self.pipeline = Pipeline(autoencoder, unet, conditioner, process, device=benchmark.device)
        self.pipeline.autocast = None  # the peer has none
        self.unet = benchmark.compiled(UNet2DConditionModel.from_pretrained(folder).eval().requires_grad_(False))
        self.scheduler = DDIMScheduler.from_config(process.config())
        self.prompts = [_PROMPTS[number % len(_PROMPTS)] for number in range(batch)]
        self.sampling = sampling
        size = (autoencoder.latent_channels, self.pipeline.networks.latent_size, self.pipeline.networks.latent_size)
        self.noise = SampleNoise(_SEED, range(batch)).initial(size, device=benchmark.device)

    def ours(self, sampling: SamplingConfig | None = None) -> Tensor:
        requests = [Request(prompt=prompt) for prompt in self.prompts]
        return torch.cat(list(self.pipeline.generate(requests, sampling or self.sampling, seed=_SEED)))

    @torch.no_grad()
    def theirs(self, unguided: Collection[int] = ()) -> Tensor:
        encode, count = self.pipeline.networks.conditioner.encode, len(self.prompts)
        prompts, null = encode(None, self.prompts).context, encode(None, [""] * count).context
        assert prompts is not None and null is not None
        both = torch.cat([null, prompts])
        self.scheduler.set_timesteps(self.sampling.num_inference_steps)
        latents = self.noise * self.scheduler.init_noise_sigma
        for index, t in enumerate(self.scheduler.timesteps):
            if index in unguided:
                output = self.unet(latents, t, encoder_hidden_states=prompts).sample
            else:
                doubled = self.scheduler.scale_model_input(torch.cat([latents, latents]), t)
                without, with_text = self.unet(doubled, t, encoder_hidden_states=both).sample.chunk(2)
                output = without + self.sampling.guidance_scale * (with_text - without)
            latents = self.scheduler.step(output, t, latents).prev_sample
        return self.pipeline.decode(latents)


def _sampling(benchmark: Benchmark, **changes: Any) -> ResolvedSampling:
    return ResolvedSampling(
        num_inference_steps=_STEPS,
        guidance_scale=_SCALE,
        compile=benchmark.compile,
        **changes,
    )


def _interval() -> tuple[float, float]:
    """The noise ratios of the guided half of the steps, a little widened."""
    levels = make_levels(make_process(settings("quickstart").diffusion).schedule, _STEPS)
    return levels[_LAST - 1].noise_ratio * 0.999, levels[_FIRST].noise_ratio * 1.001


_FIRST, _LAST = _STEPS // 4, _STEPS // 4 + _STEPS // 2  # guided: the first to the one before the last
INTERVAL = _interval()


@row("sample-cfg", f"4 pictures, {_STEPS} DDIM steps, CFG, quick start", goal=1.2, compiles=True)
def sample_cfg(benchmark: Benchmark) -> Pair:
    both = _Both(benchmark, 4, _sampling(benchmark))
    return Pair(both.ours, both.theirs, lambda: apart(both.ours(), both.theirs()), tolerance=1e-3)


@row(
    "sample-interval", "the same, CFG on half of the steps; theirs, which has no interval, on all", goal=1.6, floor=1.3
)
def sample_interval(benchmark: Benchmark) -> Pair:
    both = _Both(benchmark, 4, _sampling(benchmark, guidance_interval=INTERVAL))
    unguided = {*range(_FIRST), *range(_LAST, _STEPS)}
    return Pair(both.ours, both.theirs, lambda: apart(both.ours(), both.theirs(unguided)), tolerance=1e-3)


def _steps(benchmark: Benchmark, name: str, scheduler: Any) -> Pair:
    """50 steps with a network that costs nothing."""
    schedule = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
    x, output = benchmark.randn(2, 1, 4, 8, 8)
    levels, solver = make_levels(schedule, 50), get_sampler(name).function

    exact = {"clip_sample": False} if scheduler is DDIMScheduler else {}

    def ours() -> Tensor:
        for step in solver(lambda x, level: Prediction(x, level, output), x, levels):
            x_now = step.x
        return x_now

    def theirs() -> Tensor:
        peer = scheduler(**schedule.config(), timestep_spacing="trailing", prediction_type="sample", **exact)
        peer.set_timesteps(50)
        x_now = x
        for t in peer.timesteps:
            x_now = peer.step(output, t, x_now).prev_sample
        return x_now

    return Pair(ours, theirs, lambda: apart(ours(), theirs()), flops=0, bytes=50 * 3 * 4.0 * x.numel(), tolerance=1e-4)


@row("ddim", "50 DDIM steps, host time", goal=6.0, host=True)
def ddim(benchmark: Benchmark) -> Pair:
    return _steps(benchmark, "ddim", DDIMScheduler)


@row("dpmpp-2m", "50 DPM-Solver++ 2M steps, host time", goal=6.0, host=True)
def dpmpp_2m(benchmark: Benchmark) -> Pair:
    return _steps(benchmark, "dpmpp_2m", DPMSolverMultistepScheduler)
