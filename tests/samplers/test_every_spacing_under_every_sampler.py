"""One test for every registered solver on the levels of every spacing of every schedule."""

from typing import get_args

import pytest
import torch

from samplers import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Prediction,
    SampleNoise,
    Spacing,
    get_sampler,
    make_levels,
    samplers,
)
from samplers.schedule import BetaSchedule
from samplers.spacing import Final

SCHEDULES = {
    **{kind: DiscreteSchedule(kind) for kind in get_args(BetaSchedule)},
    "zero terminal SNR": DiscreteSchedule("scaled_linear", rescale_zero_snr=True),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(),
    "cosine of 12 times": DiscreteSchedule("cosine", 12),
    "zero terminal SNR of 12 times": DiscreteSchedule("linear", 12, rescale_zero_snr=True),
}
BY_NOISE = ("karras", "exponential", "log_snr")  # between the ends of the schedule
VISIT_FIRST = ("leading", "linspace", "quadratic", "karras", "exponential")  # the level of t = 0


def denoise(x, level):
    """That of data with unit variance."""
    return Prediction(x, level, level.alpha * x / (level.alpha**2 + level.sigma**2))


@pytest.mark.parametrize("final", get_args(Final))
@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_every_solver_runs_to_the_end(schedule, spacing, final):
    if spacing in BY_NOISE and schedule.level(schedule.num_train_timesteps - 1).alpha == 0:
        with pytest.raises(ValueError, match="ends in pure noise"):
            make_levels(schedule, 5, spacing, final=final)
        return
    for n in (1, 6, *([12] if schedule.num_train_timesteps == 12 else [])):
        levels = make_levels(schedule, n, spacing, final=final)
        assert len(levels) == n + 1 and len(set(levels[:n])) == n
        if final == "first" and (spacing == "leading" or (spacing in VISIT_FIRST and n > 1)):
            assert levels[-1] == levels[-2] == schedule.level(0), "the same to the last bit"
        for name in samplers() if n == 6 else ("unipc", "dpmpp_3m_sde", "dpm_solver"):
            noise = SampleNoise(0, [0])
            x = levels[0].sigma * torch.ones(1, 1, dtype=torch.float64)
            steps = list(get_sampler(name).function(denoise, x, levels, noise=noise))
            assert len(steps) == n and torch.isfinite(steps[-1].x).all(), name


@pytest.mark.parametrize("schedule", [DiscreteSchedule(rescale_zero_snr=True), DiscreteSchedule("cosine")])
@pytest.mark.parametrize("spacing", ["beta", "quadratic", "trailing"])
def test_many_steps_visit_no_level_twice(schedule, spacing):
    """Beta's first times lie closer than one: before pure noise alpha falls linearly, not all at once."""
    for name in ("ddim", "unipc"):
        x = torch.ones(1, 2, dtype=torch.float64)
        (*_, last) = get_sampler(name).function(denoise, x, make_levels(schedule, 150, spacing))
        assert torch.isfinite(last.x).all()


def test_a_shift_below_1_stays_within_the_schedule():
    levels = make_levels(DiscreteSchedule("linear"), 10, "leading", shift=0.5)
    assert levels[-2].t == 0 and levels[0].t < 900
    with pytest.raises(ValueError, match="shift"):
        make_levels(DiscreteSchedule("linear"), 1000, "leading", shift=0.1)
