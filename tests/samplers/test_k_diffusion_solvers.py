"""k-diffusion's solvers against diffusers, on diffusers' own list of sigmas, to 1e-8.

Its x is x / alpha, and the input of the network is our x.
"""

import importlib
import itertools
import math
import sys
import types

import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)

from samplers import (
    DiscreteSchedule,
    dpm_2,
    dpm_2_ancestral,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    lms,
)

SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
TARGETS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace", "karras"]
STEPS = [10, pytest.param(20, marks=pytest.mark.slow), 50]


def run_theirs(theirs, net, start, levels, middles=None, **options):
    """Drives a k-diffusion scheduler by its own list of (repeated) times; returns the last x, in our scale."""
    x = start / levels[0].alpha
    stages = [levels[0]] if middles is None else []
    if middles is None:
        for level in levels[1:-1]:
            stages += [level, level] if len(theirs.timesteps) > len(levels) - 1 else [level]
    else:
        for i, level in enumerate(levels[:-1]):
            stages += [level, *middles[i : i + 1]]
    assert len(stages) == len(theirs.timesteps)
    for stage, t in zip(stages, theirs.timesteps, strict=True):
        theirs.scale_model_input(x, t)
        x = theirs.step(net.output(stage.alpha * x, stage.t), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("solver", "cls"), [(euler, EulerDiscreteScheduler), (heun, HeunDiscreteScheduler), (lms, LMSDiscreteScheduler)]
)
def test_euler_heun_lms(
    float64_scheduler, toy, start, run, solver, cls, target, spacing, n, assert_close, config, levels_of
):
    theirs = float64_scheduler(cls, **config(target, spacing))
    theirs.set_timesteps(n)
    twice = solver is heun
    sigmas = [*theirs.sigmas[:1], *theirs.sigmas[1:-1:2], theirs.sigmas[-1]] if twice else theirs.sigmas
    times = [*theirs.timesteps[:1], *theirs.timesteps[1::2]] if twice else theirs.timesteps
    levels = levels_of(sigmas, times)
    net = toy(target)
    assert_close(run(solver(net, start, levels)), run_theirs(theirs, net, start, levels))


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS[:2])
def test_dpm_2(float64_scheduler, toy, start, run, target, spacing, n, assert_close, config, levels_of):
    theirs = float64_scheduler(KDPM2DiscreteScheduler, **config(target, spacing))
    theirs.set_timesteps(n)
    levels = levels_of([*theirs.sigmas[:1], *theirs.sigmas[1:-1:2]], theirs.timesteps[::2])
    middles = [SCHEDULE.level_of((a.log_snr + b.log_snr) / 2) for a, b in itertools.pairwise(levels[:-1])]
    assert [m.t for m in middles] == pytest.approx(theirs.timesteps[1::2].tolist(), abs=1e-9)
    net = toy(target)
    assert_close(run(dpm_2(net, start, levels)), run_theirs(theirs, net, start, levels, middles))


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS[:3])
@pytest.mark.parametrize("target", TARGETS[:2])
def test_euler_ancestral(
    float64_scheduler, toy, start, target, spacing, n, shared_noise, assert_close, config, levels_of
):
    options = config(target, spacing)
    del options["use_karras_sigmas"]
    theirs = float64_scheduler(EulerAncestralDiscreteScheduler, **options)
    theirs.set_timesteps(n)
    levels = levels_of(theirs.sigmas, theirs.timesteps)
    net = toy(target)
    expected = run_theirs(theirs, net, start, levels, generator=torch.Generator().manual_seed(3))
    assert_close([*euler_ancestral(net, start, levels, noise=shared_noise(3))][-1].x, expected)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS[:2])
def test_dpm_2_ancestral(
    float64_scheduler, toy, start, run, target, spacing, n, shared_noise, assert_close, config, levels_of
):
    theirs = float64_scheduler(KDPM2AncestralDiscreteScheduler, **config(target, spacing))
    theirs.set_timesteps(n)
    levels = levels_of([*theirs.sigmas[:1], *theirs.sigmas[1:-1:2]], theirs.timesteps[::2])
    assert len(levels) == n + 1
    middles = [SCHEDULE.level_of(-math.log(s)) for s in theirs.sigmas_interpol[: 2 * (n - 1) : 2].tolist()]
    net = toy(target)
    expected = run_theirs(theirs, net, start, levels, middles, generator=torch.Generator().manual_seed(3))
    assert_close(run(dpm_2_ancestral(net, start, levels, noise=shared_noise(3))), expected)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS[:2])
def test_dpmpp_sde(
    float64_scheduler, toy, start, run, monkeypatch, target, spacing, n, assert_close, config, levels_of
):
    """With one and the same noise at every draw, for diffusers takes its own from a Brownian tree of torchsde."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    theirs = float64_scheduler(module.DPMSolverSDEScheduler, **config(target, spacing))
    theirs.set_timesteps(n)
    theirs.noise_sampler = lambda *_: start.flip(0)
    levels = levels_of([*theirs.sigmas[:1], *theirs.sigmas[1:-1:2], theirs.sigmas[-1]], theirs.timesteps[::2])
    middles = [SCHEDULE.level_of((a.log_snr + b.log_snr) / 2) for a, b in itertools.pairwise(levels[:-1])]
    net = toy(target)
    expected = run_theirs(theirs, net, start, levels, middles)
    assert_close(run(dpmpp_sde(net, start, levels, noise=lambda *_: start.flip(0))), expected)
