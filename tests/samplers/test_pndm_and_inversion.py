"""PLMS and DDIM inversion against diffusers, to 1e-8."""

import math

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    PNDMScheduler,
)

from samplers import (
    DiscreteSchedule,
    Prediction,
    ddim,
    ddim_inversion,
    make_levels,
    plms,
)

SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
TARGETS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace", "karras"]
STEPS = [10, pytest.param(20, marks=pytest.mark.slow), 50]


class Gap:
    """In the place of the number of steps n: makes T // n the given number."""

    def __init__(self, gap):
        self.gap = gap

    def __rfloordiv__(self, T):
        return self.gap


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS[:3])
def test_plms(float64_scheduler, toy, start, run, spacing, n, assert_close, config):
    """For v diffusers averages the v of different levels, which is not PNDM (the next test): epsilon is compared."""
    options = config("epsilon", spacing)
    del options["use_karras_sigmas"]
    theirs = float64_scheduler(PNDMScheduler, **options, skip_prk_steps=True)
    theirs.set_timesteps(n)
    times = theirs.timesteps.tolist()
    levels = make_levels(SCHEDULE, n, spacing, final="first")
    assert [times[0], *times[2:]] == [level.t for level in levels[:-1]]
    net, x = toy(), start
    for i, t in enumerate(times):
        if spacing == "linspace":  # diffusers steps to t - T // n, not to its list's next time
            theirs.num_inference_steps = Gap(
                {0: t - times[1], 1: times[0] - t}.get(i, t - times[i + 1] if i < n else 1000)
            )
        x = theirs.step(net.output(x, t), t, x).prev_sample
    if spacing == "leading":  # the last step has no length
        assert levels[-1] == levels[-2]
    assert_close(run(plms(net, start, levels)), x)


@pytest.mark.parametrize(("target", "their_order"), [("epsilon", 2), ("v_prediction", 1)])
def test_diffusers_plms_mixes_raw_v_of_several_times_and_falls_to_order_1(
    float64_scheduler, mixture, run, target, their_order
):
    """A known fault of diffusers (0.42): it combines v, and makes eps of that at the newest level; ours combines eps.

    Orders by halving: the change from n to 2 n steps over that from 2 n to 4 n, up to t = T / 5.
    """
    T = 4000
    betas = {"beta_schedule": "linear", "beta_start": 0.5 / T, "beta_end": 10 / T}
    schedule = DiscreteSchedule(num_train_timesteps=T, **betas)
    start = torch.tensor([-2.0, -0.5, 0.3, 1.0, 2.2], dtype=torch.float64)

    def denoise(x, level):
        return Prediction(x, level, mixture.x0(x, level))

    def theirs(n):
        options = {"prediction_type": target, "timestep_spacing": "trailing", "skip_prk_steps": True}
        scheduler, x = float64_scheduler(PNDMScheduler, num_train_timesteps=T, **betas, **options), start
        scheduler.set_timesteps(n)
        for t in scheduler.timesteps.tolist()[: 4 * n // 5 + 1]:  # its first step is evaluated twice
            p = denoise(x, schedule.level(t))
            x = scheduler.step(p.eps if target == "epsilon" else p.velocity, t, x).prev_sample
        return x

    def ours(n):
        return run(plms(denoise, start, make_levels(schedule, n)[: 4 * n // 5 + 1]))

    def order(method):
        coarse, middle, fine = (method(n) for n in (40, 80, 160))
        return math.log2((coarse - middle).abs().max() / (middle - fine).abs().max())

    assert order(theirs) == pytest.approx(their_order, abs=0.15)
    assert order(ours) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS[:2])
def test_ddim_inversion(float64_scheduler, toy, start, run, spacing, n, assert_close, config):
    """For v and x0 diffusers reads the output at the next time with the coefficients of this one: epsilon alone is
    compared.
    """
    options = config("epsilon", spacing)
    del options["use_karras_sigmas"]
    theirs = float64_scheduler(DDIMInverseScheduler, **options, clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(n)
    levels = make_levels(SCHEDULE, n, spacing)[::-1]
    net, x = toy(), start
    for t in theirs.timesteps.tolist():
        x = theirs.step(net.output(x, t), t, x).prev_sample
    assert_close(run(ddim_inversion(net, start, levels)), x)


@pytest.mark.parametrize("target", TARGETS)
def test_inversion_by_fixed_point_is_undone_by_ddim(toy, start, run, target, assert_close):
    levels = make_levels(SCHEDULE, 50, "trailing", final="first")[:-1]
    net = toy(target)
    there = run(ddim_inversion(net, start, levels[::-1], iterations=60))
    assert_close(run(ddim(net, there, levels)), start, 1e-6)
