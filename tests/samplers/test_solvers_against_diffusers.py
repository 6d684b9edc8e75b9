"""Our solvers are diffusers' schedulers to 1e-8, once those compute their tables in float64."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from samplers import DiscreteSchedule, Prediction, ddim, ddpm, dpmpp_2m, levels_at, make_levels, spaced_times

TARGETS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)


class Gap(int):
    """A number of steps n for which T // n is this gap, whether or not there is such a number."""

    def __rfloordiv__(self, other):
        return int(self)


def config(target, spacing):
    return {**SCHEDULE.config(), "prediction_type": target, "timestep_spacing": spacing}


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("eta", "final"), [(0.0, "first"), (1.0, "zero")])
def test_ddim(float64_scheduler, toy, start, run, target, spacing, n, eta, final, shared_noise, assert_close):
    theirs = float64_scheduler(
        DDIMScheduler, **config(target, spacing), clip_sample=False, set_alpha_to_one=final == "zero"
    )
    theirs.set_timesteps(n)
    times = theirs.timesteps.tolist()
    levels = make_levels(SCHEDULE, n, spacing, final=final)
    assert [level.t for level in levels[:-1]] == times
    x, net, noise = start, toy(target), shared_noise(3)
    for i, t in enumerate(times):
        if spacing == "linspace" and i + 1 < n:
            # diffusers steps to t - T // n although the next time of its list is another: have it use
            # the list
            theirs.num_inference_steps = Gap(t - times[i + 1])
        last = i + 1 == n
        eps = noise(x) if eta and not last else torch.zeros_like(x)
        if spacing == "linspace" and last:
            theirs.num_inference_steps = 1
        x = theirs.step(net.output(x, t), t, x, eta=eta, variance_noise=eps if eta else None).prev_sample
    assert_close(run(ddim(net, start, levels, noise=shared_noise(3), eta=eta)), x)


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(float64_scheduler, toy, start, target, spacing, n, variance, shared_noise, assert_close):
    theirs = float64_scheduler(
        DDPMScheduler, **config(target, spacing), clip_sample=False, variance_type=f"fixed_{variance}"
    )
    theirs.set_timesteps(n)
    times = theirs.timesteps.tolist()
    theirs.set_timesteps(timesteps=times)  # else linspace steps to t - T // n instead of the next time of the list
    levels = make_levels(SCHEDULE, n, spacing)
    net, x, generator = toy(target), start, torch.Generator().manual_seed(3)
    expected = []
    for t in times:
        x = theirs.step(net.output(x, t), t, x, generator=generator).prev_sample
        expected.append(x)
    ours = [step.x for step in ddpm(net, start, levels, noise=shared_noise(3), variance=variance)]
    # diffusers' noise on the finished sample: see the test below
    steps = n if variance == "small" or times[-1] == 0 else n - 1
    for a, b in zip(ours[:steps], expected[:steps], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("spacing", [*SPACINGS, "karras"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("final", ["zero", "first"])
def test_dpmpp_2m(float64_scheduler, toy, start, run, target, spacing, n, final, assert_close):
    karras = spacing == "karras"
    theirs = float64_scheduler(
        DPMSolverMultistepScheduler,
        **config(target, "leading" if karras else spacing),
        solver_order=2,
        use_karras_sigmas=karras,
        final_sigmas_type="zero" if final == "zero" else "sigma_min",
    )
    theirs.set_timesteps(n)
    levels = make_levels(SCHEDULE, n, spacing, drop_last=not karras, final=final, round_times=karras)
    assert [level.t for level in levels[:-1]] == theirs.timesteps.tolist()
    if karras and final == "first":
        levels = levels[:-1]  # there diffusers' list names sigma_min twice, and its last step is 0 / 0
    x, net = start, toy(target)
    for t in theirs.timesteps[: len(levels) - 1]:
        x = theirs.step(net.output(x, t), t, x).prev_sample
    short = not (karras and final == "first")
    assert_close(run(dpmpp_2m(net, start, levels, lower_order_final=short)), x)


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("target", TARGETS)
def test_ddpm_with_learned_variance(float64_scheduler, toy, start, run, target, n, shared_noise, assert_close):
    theirs = float64_scheduler(
        DDPMScheduler, **config(target, "trailing"), clip_sample=False, variance_type="learned_range"
    )
    theirs.set_timesteps(n)
    net, x, generator = toy(target), start, torch.Generator().manual_seed(3)

    def fraction(x):
        return torch.sin(3 * x) / 2 + 0.5

    def denoise(x, level):
        return replace(net(x, level), variance_fraction=fraction(x))

    steps = ddpm(denoise, start, make_levels(SCHEDULE, n), noise=shared_noise(3), variance="learned")
    for t, step in list(zip(theirs.timesteps.tolist(), steps, strict=True))[:-1]:  # for the last see the next test
        output = torch.cat([net.output(x, t), 2 * fraction(x) - 1], 1)
        x = theirs.step(output, t, x, generator=generator).prev_sample
        assert_close(step.x, x)
    with pytest.raises(ValueError, match=r"Prediction\.variance_fraction"):
        run(ddpm(net, start, make_levels(SCHEDULE, n), noise=shared_noise(3), variance="learned"))


@pytest.mark.parametrize(("spacing", "last"), [("trailing", 99), ("leading", 0)])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_diffusers_ddpm_adds_noise_to_the_finished_sample_where_the_last_time_is_above_0(
    float64_scheduler, start, variance, spacing, last
):
    """A known fault of diffusers (0.42): it asks whether t > 0, not whether the step ends at sigma = 0 as ours does."""
    theirs = float64_scheduler(DDPMScheduler, **config("epsilon", spacing), clip_sample=False, variance_type=variance)
    theirs.set_timesteps(10)
    assert theirs.timesteps[-1] == last
    output = torch.cat([start, torch.ones_like(start)], 1) if variance == "learned_range" else start

    def finished(seed):
        return theirs.step(output, last, start, generator=torch.Generator().manual_seed(seed)).prev_sample

    noise = (finished(0) - finished(1)).abs().max()
    assert (noise > 1e-2) == (last > 0 and variance != "fixed_small")

    def draws(like, *_):
        raise AssertionError("the last step draws nothing")

    def denoise(x, level):
        return Prediction(x, level, x, variance_fraction=torch.ones_like(x))

    ours = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}[variance]
    (step,) = ddpm(denoise, start, make_levels(SCHEDULE, 10, spacing)[-2:], noise=draws, variance=ours)
    assert step.level.sigma == 0 and torch.equal(step.x, start)


def test_ddim_with_all_steps_and_eta_1_is_ddpm_with_the_small_variance(toy, start, run, shared_noise, assert_close):
    levels = make_levels(DiscreteSchedule("cosine", 60), 60, "leading")
    a = run(ddim(toy("sample"), start, levels, noise=shared_noise(0), eta=1.0))
    b = run(ddpm(toy("sample"), start, levels, noise=shared_noise(0)))
    assert_close(a, b)


def test_dpmpp_of_order_1_is_ddim(toy, start, run, assert_close):
    levels = levels_at(SCHEDULE, [600.0])
    assert_close(run(dpmpp_2m(toy(), start, levels)), run(ddim(toy(), start, levels)))


def test_explicit_times_reach_what_no_spacing_gives(toy, start, run, assert_close):
    times = spaced_times(1000, 4, "leading", steps_offset=1)
    assert times == [751.0, 501.0, 251.0, 1.0]
    assert_close(
        run(ddim(toy(), start, levels_at(SCHEDULE, times))),
        run(ddim(toy(), start, make_levels(SCHEDULE, 4, "leading", steps_offset=1))),
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_gradient_guidance_at_the_last_step_of_ddpm_beside_guided_diffusions(start, run, variance):
    """guided-diffusion multiplies the gradient by its variance, which at t = 0 is not the one of the step to the data.

    There it has for small 0, for large the small variance of the step before, for learned between that and beta_0.
    """
    first, second = SCHEDULE.level(0), SCHEDULE.level(1)
    beta = 1 - (second.alpha / first.alpha) ** 2
    posterior = beta * first.sigma**2 / second.sigma**2
    learned = math.sqrt(posterior * first.sigma**2)  # the fraction is 1/2
    ours = {"small": 0.0, "large": first.sigma**2, "learned": 0.0}[variance]
    theirs = {"small": 0.0, "large": posterior, "learned": learned}[variance]

    def moved(shift):
        def denoise(x, level):
            return Prediction(x, level, x, score_shift=shift, variance_fraction=torch.full_like(x, 0.5))

        return run(ddpm(denoise, start, levels_at(SCHEDULE, [0.0]), noise=lambda *_: None, variance=variance))

    shift = torch.full_like(start, 2.0)
    torch.testing.assert_close(moved(shift) - moved(None), ours * shift, rtol=1e-9, atol=1e-14)
    assert (ours == theirs) == (variance == "small") and 0 <= theirs <= 1.01 * first.sigma**2
