"""Schedules against closed forms and diffusers; spacings against Table 2 of Lin et al. 2024."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.stats import beta

from samplers import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Prediction,
    Spacing,
    ddim,
    karras_ratios,
    levels_at,
    make_levels,
    spaced_times,
)

ALL = [
    DiscreteSchedule("linear"),
    DiscreteSchedule("scaled_linear", 1000, 0.00085, 0.012),
    DiscreteSchedule("cosine", 500),
    DiscreteSchedule("linear", rescale_zero_snr=True),
    DiscreteSchedule("sigmoid"),
]
CONTINUOUS = [EDMSchedule(), EDMSchedule(0.01, 20.0, 100), FlowSchedule(), FlowSchedule(50)]


@pytest.mark.parametrize("schedule", ALL)
def test_tables_are_those_of_diffusers(float64_scheduler, schedule):
    theirs = float64_scheduler(DDPMScheduler, **schedule.config())
    alpha, sigma = schedule.at(torch.arange(schedule.num_train_timesteps, dtype=torch.float64))
    assert torch.allclose(alpha**2, theirs.alphas_cumprod, rtol=1e-12, atol=1e-15)
    assert torch.allclose(sigma**2, 1 - theirs.alphas_cumprod, rtol=1e-10, atol=1e-15)
    assert DiscreteSchedule.from_config(dict(theirs.config)).config() == schedule.config()


def test_a_schedule_equals_that_of_its_config_and_no_other():
    schedules = [*ALL, *CONTINUOUS]
    for i, schedule in enumerate(schedules):
        again = type(schedule).from_config({**schedule.config(), "_class_name": "any"})
        assert again == schedule and hash(again) == hash(schedule)
        assert [other == schedule for other in schedules] == [j == i for j in range(len(schedules))]
    with pytest.raises(ValueError, match="without a shift"):
        FlowSchedule.from_config({"shift": 3.0})


def test_closed_forms():
    linear, cosine = DiscreteSchedule("linear"), DiscreteSchedule("cosine")
    expected = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(501))
    assert linear.level(500).alpha ** 2 == pytest.approx(expected, rel=1e-12)

    def bar(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    assert cosine.level(499).alpha ** 2 == pytest.approx(bar(0.5) / bar(0), rel=1e-12)
    assert cosine.level(999).alpha ** 2 / cosine.level(998).alpha ** 2 == pytest.approx(1 - 0.999, rel=1e-9)
    assert ALL[3].level(999).alpha == 0 and ALL[3].level(999).sigma == 1
    assert ALL[3].level(0).alpha == pytest.approx(linear.level(0).alpha, rel=1e-12)


@pytest.mark.parametrize("schedule", ALL)
def test_at_and_level_agree_and_are_smooth(schedule):
    t = torch.tensor([0.0, 0.25, 17.0, 17.5, 300.125, 490.9, 499.0], dtype=torch.float64)
    alpha, sigma = schedule.at(t)
    levels = [schedule.level(float(v)) for v in t]
    assert torch.allclose(alpha, torch.tensor([v.alpha for v in levels], dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.allclose(sigma, torch.tensor([v.sigma for v in levels], dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14)
    middle = (schedule.level(17).log_snr + schedule.level(18).log_snr) / 2
    assert schedule.level(17.5).log_snr == pytest.approx(middle, rel=1e-13)
    assert [schedule.time_of(v.log_snr) for v in levels] == pytest.approx(t.tolist(), abs=1e-9)
    assert schedule.at(t.float()[None])[0].dtype == torch.float32
    assert schedule.at(torch.tensor([3, 4]))[0].tolist() == pytest.approx(
        [schedule.level(3).alpha, schedule.level(4).alpha]
    )


def test_zero_terminal_snr_between_the_last_two_times():
    alpha, sigma = ALL[3].at(torch.tensor([998.5, 999.0], dtype=torch.float64))
    assert torch.isfinite(alpha).all() and torch.isfinite(sigma).all() and alpha[1] == 0
    level = ALL[3].level(998.5)
    assert level.alpha == alpha[0].item() == pytest.approx(ALL[3].level(998).alpha / 2)
    assert level.sigma == pytest.approx(sigma[0].item()) == pytest.approx(math.sqrt(1 - level.alpha**2))
    assert ALL[3].time_of(level.log_snr) == pytest.approx(998.5)
    assert ALL[3].times_of(torch.tensor([level.log_snr], dtype=torch.float64)).item() == pytest.approx(998.5)
    assert ALL[3].time_of(-math.inf) == 999


def test_spacings():
    for n in (1, 3, 7, 10, 30, 50, 250, 999, 1000):
        theirs = DDPMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
        theirs.set_timesteps(n)
        if len(theirs.timesteps) == n:  # arange with a fraction sometimes gives one more
            assert spaced_times(1000, n, "trailing") == theirs.timesteps.tolist()
        assert spaced_times(1000, n, "leading")[-1] == 0 and len(spaced_times(1000, n, "leading")) == n
        if n > 1:
            assert spaced_times(1000, n, "linspace") == np.linspace(0, 999, n).round()[::-1].tolist()
    assert spaced_times(1000, 1, "linspace") == [999.0]


def test_karras():
    schedule = ALL[1]
    levels = make_levels(schedule, 10, "karras")
    low, high = schedule.level(0).noise_ratio, schedule.level(999).noise_ratio
    ratios = [(high ** (1 / 7) + i / 9 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(10)]
    assert [v.noise_ratio for v in levels[:-1]] == pytest.approx(ratios, rel=1e-12) == karras_ratios(10, low, high)
    for level in levels[:-1]:
        assert schedule.level(level.t).noise_ratio == pytest.approx(level.noise_ratio, rel=1e-9)
    assert levels[-1].sigma == 0


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_continuous_schedules(schedule):
    T = schedule.num_train_timesteps
    t = torch.tensor([0.0, 3.25, 17.0, T - 1.5], dtype=torch.float64)
    alpha, sigma = schedule.at(t)
    levels = [schedule.level(float(v)) for v in t]
    assert torch.allclose(alpha, torch.tensor([v.alpha for v in levels], dtype=torch.float64), rtol=1e-14)
    assert torch.allclose(sigma, torch.tensor([v.sigma for v in levels], dtype=torch.float64), rtol=1e-14)
    for level in levels:
        again = schedule.level_of(level.log_snr)
        assert (again.t, again.alpha, again.sigma) == pytest.approx(
            (level.t, level.alpha, level.sigma), rel=1e-9, abs=1e-9
        )
    assert schedule.at(t.float())[1].dtype == torch.float32
    if isinstance(schedule, EDMSchedule):
        ends = schedule.level(0), schedule.level(T - 1)
        assert [v.sigma for v in ends] == pytest.approx([schedule.sigma_min, schedule.sigma_max]) and ends[1].alpha == 1
    else:
        assert schedule.level(T - 1).alpha == 0 and schedule.level(0).sigma == pytest.approx(1 / T)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_and_steps_are_those_of_diffusers(float64_scheduler, start, run, shift):
    theirs = float64_scheduler(FlowMatchEulerDiscreteScheduler)
    levels = make_levels(FlowSchedule(), 28, shift=shift)
    theirs.set_timesteps(sigmas=[s * shift / (1 + (shift - 1) * s) for s in (1 - i / 28 for i in range(28))])
    # our times are whole ones
    assert torch.allclose(theirs.sigmas, torch.tensor([v.sigma for v in levels], dtype=torch.float64), atol=1.5e-3)
    theirs.sigmas = torch.tensor([v.sigma for v in levels], dtype=torch.float64)

    def velocity(x, s):
        return torch.sin(x + s) + 0.3 * x

    x = start
    for t, level in zip(theirs.timesteps, levels, strict=False):
        x = theirs.step(velocity(x, level.sigma), t, x).prev_sample

    def denoise(x, level):
        return Prediction(x, level, x - level.sigma * velocity(x, level.sigma))

    assert (run(ddim(denoise, start, levels)) - x).abs().max() < 1e-12


@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_every_spacing_falls_from_noise_to_the_end(spacing):
    for schedule in (ALL[1], ALL[2], *CONTINUOUS[:1]):
        for n in (1, 2, 10, 33):
            levels = make_levels(schedule, n, spacing)
            assert len(levels) == n + 1 and levels[-1].sigma == 0
            assert all(a.noise_ratio > b.noise_ratio for a, b in itertools.pairwise(levels))
            assert all(0 <= level.t <= schedule.num_train_timesteps - 1 for level in levels)
            if spacing != "leading" and not spacing.startswith("ays"):
                assert levels[0].noise_ratio == pytest.approx(
                    schedule.level(schedule.num_train_timesteps - 1).noise_ratio
                )


def test_spacings_by_their_formulas():
    T, low, high = 1000, ALL[1].level(0), ALL[1].level(999)
    ratios = [v.noise_ratio for v in make_levels(ALL[1], 5, "exponential")[:-1]]
    assert ratios == pytest.approx(np.geomspace(high.noise_ratio, low.noise_ratio, 5).tolist())
    lambdas = [v.log_snr for v in make_levels(ALL[1], 5, "log_snr", final="first")]
    assert lambdas == pytest.approx(np.linspace(high.log_snr, low.log_snr, 6).tolist())
    assert spaced_times(T, 4, "quadratic") == pytest.approx([999, 444, 111, 0])
    assert spaced_times(T, 7, "beta") == pytest.approx(
        (999 * beta.ppf(1 - np.arange(7) / 7, 0.6, 0.6)).tolist(), abs=1e-9
    )
    assert make_levels(ALL[0], 5, "karras", round_times=True)[2].t.is_integer()


def test_align_your_steps_are_the_published_tables():
    """Ten steps of Stable Diffusion fall on the whole times that were published with them."""
    published = {
        "ays_sd": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "ays_sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    for name, times in published.items():
        ten = make_levels(ALL[1], 10, name)
        assert [v.t for v in ten[:-1]] == pytest.approx(times, abs=3)
        twenty = make_levels(ALL[1], 20, name)
        assert [v.noise_ratio for v in twenty[:-1:2]] == pytest.approx([v.noise_ratio for v in ten[:-1]], rel=1e-12)
        middle = (ten[3].log_snr + ten[4].log_snr) / 2
        assert twenty[7].log_snr == pytest.approx(middle, rel=1e-12)


def test_final_level():
    assert make_levels(ALL[0], 5)[-1].sigma == 0
    assert make_levels(ALL[0], 5, final="first")[-1] == ALL[0].level(0)
    assert levels_at(ALL[0], [10.5, 3])[0].t == 10.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_levels(ALL[0], 0), "at least 1; got 0"),
        (lambda: make_levels(ALL[0], 2.5), "whole number"),
        (lambda: make_levels(ALL[0], 1001), "1001 steps are more than the schedule's 1000 times"),
        (lambda: make_levels(ALL[0], 1000, "leading", steps_offset=1), "leave the times"),
        (lambda: make_levels(ALL[0], 5, "trailling"), "spacing must be one of"),
        (lambda: make_levels(ALL[0], 5, "karras", rho=0.0), "rho must be positive"),
        (lambda: make_levels(ALL[0], 5, shift=float("nan")), "shift must be positive"),
        (lambda: EDMSchedule(2.0, 1.0), "sigma_min < sigma_max"),
        (lambda: FlowSchedule(1), "at least 2"),
        (lambda: FlowSchedule().level(-1), r"in \[0, 999\]"),
        (lambda: make_levels(FlowSchedule(), 5, "log_snr"), "ends in pure noise"),
        (lambda: make_levels(ALL[0], 5, final="last"), "final must be one of"),
        (lambda: make_levels(ALL[3], 5, "karras"), "ends in pure noise"),
        (lambda: DiscreteSchedule("quadratic"), "beta_schedule must be one of"),
        (lambda: DiscreteSchedule(beta_start=0.5, beta_end=0.1), "beta_start <= beta_end"),
        (lambda: DiscreteSchedule.from_config({"trained_betas": [0.1]}), "trained_betas"),
        (lambda: ALL[0].level(999.5), r"in \[0, 999\]"),
        (lambda: ALL[0].at(torch.tensor([-1.0])), r"in \[0, 999\]"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
