"""PLMS and DDIM inversion against diffusers, to 1e-8."""

import pytest
from diffusers import (
    DDIMInverseScheduler,
    PNDMScheduler,
)

from samplers import (
    DiscreteSchedule,
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
    """For v diffusers averages the v of different levels, which is not PNDM; so epsilon alone is compared."""
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
