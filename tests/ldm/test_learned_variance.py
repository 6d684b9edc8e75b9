"""The learned variance against guided-diffusion's formulas in scipy, and both new kinds of training from end to end."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file
from scipy import stats

from ldm.runtime.errors import UserError
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.denoiser import split_variance
from ldm.sampling.forward_process import Process
from ldm.sampling.pipeline import Pipeline
from ldm.training.tasks.latents import make_process
from ldm.training.tasks.learned_variance import VarianceLoss
from ldm.training.tasks.settings import ClassifierRun, DiffusionConfig, DiffusionRun, ObjectiveConfig
from samplers import DiscreteSchedule, EpsilonTarget, FlowSchedule, FlowTarget, SampleNoise, ddim, ddpm, guide

CPU = torch.device("cpu")
T = 24
SCHEDULES = [
    DiscreteSchedule("linear", T, 1e-3, 0.2), DiscreteSchedule("cosine", T),
    DiscreteSchedule("linear", T, 1e-3, 0.2, rescale_zero_snr=True),
]  # fmt: skip


def vb_terms(schedule, x0, x0_hat, values, eps, t, pixels):
    """The term of the bound of one time as guided-diffusion computes it, in bits a dimension, from its betas."""
    bars = np.array([schedule.level(n).alpha ** 2 for n in range(T)])
    before = np.append(1.0, bars[:-1])
    betas = 1 - bars / before
    posterior = betas * (1 - before) / (1 - bars)
    log_posterior = np.log(np.append(posterior[1], posterior[1:]))
    first, second = betas * np.sqrt(before) / (1 - bars), (1 - before) * np.sqrt(1 - betas) / (1 - bars)
    x = np.sqrt(bars[t]) * x0 + np.sqrt(1 - bars[t]) * eps
    true_mean, mean = first[t] * x0 + second[t] * x, first[t] * x0_hat + second[t] * x
    share = (values + 1) / 2
    log_variance = share * np.log(betas[t]) + (1 - share) * log_posterior[t]
    if t > 0:
        excess = log_variance - log_posterior[t]
        nats = 0.5 * (-1 + excess + np.exp(-excess) + (true_mean - mean) ** 2 * np.exp(-log_variance))
    elif pixels:
        normal = stats.norm(mean, np.exp(0.5 * log_variance))
        upper = np.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
        lower = np.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255))
        nats = -np.log(np.maximum(upper - lower, 1e-12))
    else:
        nats = -stats.norm(mean, np.exp(0.5 * log_variance)).logpdf(x0)
    return nats.mean() / np.log(2)


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "cosine", "zero snr"])
def test_the_loss_is_guided_diffusions_term_of_the_bound(schedule, pixels):
    rng = np.random.default_rng(0)
    loss = VarianceLoss(schedule, pixels=pixels, device=CPU)
    for t in range(T):
        x0 = (rng.integers(0, 256, (3, 2, 2)) / 127.5 - 1) if pixels else rng.normal(size=(3, 2, 2))
        x0.flat[0], x0.flat[1] = 1.0, -1.0
        x0_hat, values, eps = x0 + 0.1 * rng.normal(size=x0.shape), rng.uniform(-1.2, 1.2, x0.shape), rng.normal()
        expected = 0.001 * T * vb_terms(schedule, x0, x0_hat, values, eps, t, pixels)
        output = torch.from_numpy(np.concatenate([x0_hat, values]))[None]
        estimate, fraction = split_variance(output, 3)
        found = loss(torch.from_numpy(x0)[None], estimate, fraction, torch.tensor([float(t)]))
        assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12), t


@pytest.mark.parametrize("std", [0.0, 0.5, 1.0])
def test_the_loss_teaches_the_variance_alone_and_has_its_minimum_at_the_true_one(std):
    """For data of this deviation the error of the best estimate is known, and so the variance of the reverse step."""
    levels = [SCHEDULES[0].level(n) for n in range(T)]
    errors, best = [], []
    for next, now in itertools.pairwise(levels):
        errors.append(std**2 * now.sigma**2 / (now.alpha**2 * std**2 + now.sigma**2))
        share = 1 - (now.alpha * next.sigma / (next.alpha * now.sigma)) ** 2
        small, large = next.sigma**2 * share, now.sigma**2 * share
        true = small + (next.alpha * share) ** 2 * errors[-1]
        best.append(math.log(true / small) / math.log(large / small))
    assert std or not any(best), "small for one point"
    assert std < 1 or best == pytest.approx([1.0] * (T - 1)), "large for unit variance"
    t, x0 = torch.arange(1.0, T), torch.zeros(T - 1, 1, 1, 2, dtype=torch.float64)
    x0_hat = torch.tensor(errors, dtype=torch.float64).sqrt().view(-1, 1, 1, 1).expand_as(x0).clone().requires_grad_()
    fraction = torch.tensor(best, dtype=torch.float64).view(-1, 1, 1, 1).expand_as(x0).clone().requires_grad_()
    loss = VarianceLoss(SCHEDULES[0], pixels=False, device=CPU)
    at_best = loss(x0, x0_hat, fraction, t)
    at_best.sum().backward()
    assert x0_hat.grad is None and fraction.grad.abs().max() < 1e-12
    for other in (fraction - 0.1, fraction + 0.1):
        assert (loss(x0, x0_hat, other, t) > at_best).all()


def test_settings_that_contradict_it_are_refused():
    for name in ("learn_variance", "rescale_betas_zero_snr"):
        for schedule in ("flow", "edm"):
            with pytest.raises(UserError, match=f"`{name}`: not with `beta_schedule` {schedule}"):
                DiffusionConfig(schedule, **{name: True})
    with pytest.raises(UserError, match="pure noise, where a noise estimate gives no x0; take v_prediction"):
        DiffusionConfig(prediction_type="epsilon", rescale_betas_zero_snr=True)
    learned = DiffusionConfig(learn_variance=True)
    for objective in ({"time_sampling": "log_normal"}, {"offset_noise": 0.1}, {"input_perturbation": 0.1}):
        with pytest.raises(UserError, match=f"`{next(iter(objective))}`"):
            DiffusionRun(diffusion=learned, objective=ObjectiveConfig(**objective))
    with pytest.raises(UserError, match="a classifier"):
        ClassifierRun(diffusion=learned)
    with pytest.raises(UserError, match="no steps of `ddpm`"):
        Process(FlowSchedule(), FlowTarget(), learned_variance=True)
    plain = DiffusionConfig().fingerprint()
    assert not {"learn_variance", "rescale_betas_zero_snr"} & plain.keys(), "runs from before them go on"
    assert DiffusionConfig(rescale_betas_zero_snr=True).fingerprint()["prediction_type"] == "v_prediction"


def test_a_process_is_what_diffusers_schedulers_say():
    learned = make_process(DiffusionConfig(learn_variance=True))
    assert learned.config()["_class_name"] == "DDPMScheduler" and learned.config()["variance_type"] == "learned_range"
    assert Process.from_config(learned.config()) == learned
    zero = make_process(DiffusionConfig(rescale_betas_zero_snr=True))
    entries = zero.config()
    assert entries["rescale_betas_zero_snr"] and entries["timestep_spacing"] == "trailing"
    assert Process.from_config(entries) == zero and zero.schedule.level(999).alpha == 0
    with pytest.raises(ValueError, match="learned is not supported"):
        Process.from_config({**learned.config(), "variance_type": "learned"})
    assert not Process(DiscreteSchedule(), EpsilonTarget()).learned_variance


SMALL = ("--text-encoder", "None", "--num-train-timesteps", 10)


def denoised(pipeline, requests):
    return guide(pipeline.denoiser(requests, pipeline.resolve(SamplingConfig(num_inference_steps=5))))


@torch.no_grad()
def theirs(scheduler, pipeline, x, labels, generator):
    scheduler.set_timesteps(5)
    steps = []
    for t in scheduler.timesteps.tolist():
        output = pipeline.networks.unet(x, torch.full((len(x),), float(t)), class_labels=labels)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
        steps.append(x)
    return steps


def test_a_learned_variance_trains_resumes_and_is_used_everywhere(ldm, models, tmp_path):
    run, flags = tmp_path / "run", (*SMALL, "--learn-variance", "--ema-lengths", 0.2, "--eval-every", 0)
    assert ldm(*models.command("diffusion", run, *flags, "--checkpointing-steps", 4, steps=6)).code == 0
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry for entry in entries if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(entry["mse"] + entry["variance_loss"], rel=1e-5) for entry in losses)
    assert len({entry["variance_loss"] for entry in losses}) == 6
    weights = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    assert weights["conv_out.weight"].shape[0] == 8 and (weights["conv_out.weight"][4:] != 0).any()
    scheduler = DDPMScheduler.from_pretrained(run / "scheduler")
    assert scheduler.config.variance_type == "learned_range"
    index = json.loads((run / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]

    pipeline = Pipeline.load(run)
    requests, labels = [Request(class_label=n) for n in (0, 1)], torch.tensor([0, 1])
    plan = pipeline.resolve(SamplingConfig("ddpm(variance='learned')", 5))
    start = SampleNoise(0, range(2)).initial((4, 8, 8))
    shared = torch.Generator().manual_seed(0)
    ours = ddpm(
        denoised(pipeline, requests), start, plan.levels, variance="learned",
        noise=lambda like, *_: torch.randn(like.shape, generator=shared),
    )  # fmt: skip
    expected = theirs(scheduler, pipeline, start, labels, torch.Generator().manual_seed(0))
    for step, x in list(zip(ours, expected, strict=True))[:-1]:  # diffusers adds noise to the finished sample
        torch.testing.assert_close(step.x, x, rtol=1e-4, atol=1e-4)

    assert ldm("ema", run, "--length", 0.2, "--output-dir", tmp_path / "averaged").code == 0
    few = ("--device", "cpu", "--num-inference-steps", 3)
    guided = ("--guidance", "autoguidance(2)", "--weak")
    for n, (model, more) in enumerate(
        [
            (run, ("--sampler", "ddpm(variance='learned')", "--guidance-scale", 3)),
            (tmp_path / "averaged", ("--sampler", "ddpm('learned')", *guided, models.classes)),
            (models.classes, (*guided, run)),
        ]
    ):
        drawn = ldm("sample", model, *few, *more, "--num-images", 2, "--output-dir", tmp_path / str(n))
        assert drawn.code == 0, drawn.err
    bits = ("--metrics", "bits_per_dim", "--likelihood-images", 4, "--bound-steps", 4, "--flow-steps", 2)
    assert "bound]: " in ldm("evaluate", run, "--device", "cpu", *bits).out


def test_a_schedule_that_ends_in_pure_noise_trains_and_is_sampled_from_there(ldm, models, tmp_path, refused):
    run, flags = tmp_path / "run", (*SMALL, "--rescale-betas-zero-snr")
    refused(models.command("diffusion", run, *flags, "--prediction-type", "epsilon"), "--prediction-type", "pure noise")
    assert ldm(*models.command("diffusion", run, *flags, steps=6)).code == 0
    scheduler = DDIMScheduler.from_pretrained(run / "scheduler")
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.config.prediction_type == "v_prediction"
    pipeline = Pipeline.load(run)
    requests, labels = [Request(class_label=n) for n in (0, 1)], torch.tensor([0, 1])
    levels = pipeline.resolve(SamplingConfig(num_inference_steps=5)).levels
    assert levels[0].alpha == 0 and levels[0].t == 9
    start = SampleNoise(0, range(2)).initial((4, 8, 8))
    ours = ddim(denoised(pipeline, requests), start, levels)
    for step, x in zip(ours, theirs(scheduler, pipeline, start, labels, None), strict=True):
        torch.testing.assert_close(step.x, x, rtol=1e-4, atol=1e-4)
    for sampler in ("dpmpp_2m", "unipc", "ddpm"):
        sampling = SamplingConfig(sampler, 4, guidance_scale=2.0)
        (images,) = pipeline.generate(requests, sampling)
        assert images.isfinite().all()
