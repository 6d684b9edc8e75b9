"""Churn as in Algorithm 2 of Karras et al. 2022, written out in the paper's variables (x / alpha, sigma)."""

import itertools
import math

import pytest
import torch

from samplers import DiscreteSchedule, euler, get_sampler, make_levels

SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
S = {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 5.0, "s_noise": 1.003}


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_is_algorithm_2(toy, start, run, shared_noise, assert_close, name):
    """diffusers adds the noise after the network's call and conditions it on the old level; the paper does
    not.
    """
    levels, net, noise = make_levels(SCHEDULE, 12, "karras"), toy("v_prediction"), shared_noise(2)

    def denoised(y, sigma):
        level = SCHEDULE.level_of(-math.log(sigma))
        return net(level.alpha * y, level).x0

    x = start / levels[0].alpha
    for now, next in itertools.pairwise(levels):
        t, t_next = now.noise_ratio, next.noise_ratio
        gamma = min(S["s_churn"] / 12, math.sqrt(2) - 1) if S["s_tmin"] <= t <= S["s_tmax"] else 0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * S["s_noise"] * noise(x)
        d = (x - denoised(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next > 0 and name == "heun":
            x_next = x + (t_next - t_hat) * (d + (x_next - denoised(x_next, t_next)) / t_next) / 2
        x = x_next
    assert_close(run(get_sampler(name).function(net, start, levels, noise=shared_noise(2), **S)), x)


def test_churn_is_refused_where_it_cannot_be(toy, start):
    levels = make_levels(SCHEDULE, 3)
    with pytest.raises(ValueError, match=r"euler with s_churn = 1\.0 draws noise"):
        euler(toy(), start, levels, s_churn=1.0)
    bare = [type(level)(level.t, level.alpha, level.sigma) for level in levels]
    with pytest.raises(ValueError, match="needs its `path`"):
        euler(toy(), start, bare, s_churn=1.0, noise=lambda like, *_: torch.zeros_like(like))
    with pytest.raises(ValueError, match="needs its `path`"):
        get_sampler("dpm_2").function(toy(), start, bare)
    euler(toy(), start, bare)
