"""The DPM family, DEIS and UniPC against diffusers, on diffusers' own list of sigmas, to 1e-8."""

import itertools
import math

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
)

from samplers import (
    DiscreteSchedule,
    deis,
    dpm_solver,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    make_levels,
    unipc,
)

SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
TARGETS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace", "karras"]
STEPS = [10, pytest.param(20, marks=pytest.mark.slow), 50]


def run_dpm(theirs, net, start, levels, **options):
    """Drives a scheduler of the DPM family, whose x is ours."""
    x = start
    for level, t in zip(levels, theirs.timesteps, strict=False):
        x = theirs.step(net.output(x, level.t), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    ("solver", "options", "theirs_options"),
    [
        (dpmpp_2m, {"form": "heun"}, {"solver_order": 2, "solver_type": "heun"}),
        (dpmpp_3m, {}, {"solver_order": 3}),
        (
            dpmpp_3m,
            {"form": "heun", "lower_order_final": False},
            {"solver_order": 3, "solver_type": "heun", "lower_order_final": False},
        ),
        (dpmpp_2m_sde, {}, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
        (
            dpmpp_2m_sde,
            {"form": "heun"},
            {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        ),
    ],
)
def test_multistep_dpm(
    float64_scheduler,
    toy,
    start,
    run,
    target,
    spacing,
    n,
    final,
    solver,
    options,
    theirs_options,
    shared_noise,
    assert_close,
    config,
    levels_of,
):
    twice = (
        spacing == "karras" and final == "sigma_min"
    )  # the list names sigma_min twice; diffusers' last step is 0 / 0
    if twice:
        options, theirs_options = ({**o, "lower_order_final": False} for o in (options, theirs_options))
    theirs = float64_scheduler(
        DPMSolverMultistepScheduler, **config(target, spacing), final_sigmas_type=final, **theirs_options
    )
    theirs.set_timesteps(n)
    levels = levels_of(theirs.sigmas, theirs.timesteps)
    if twice:
        levels = levels[:-1]
    net = toy(target)
    noise = {"noise": shared_noise(3)} if solver is dpmpp_2m_sde else {}
    generator = {"generator": torch.Generator().manual_seed(3)} if noise else {}
    expected = run_dpm(theirs, net, start, levels[:-1], **generator)
    assert_close(run(solver(net, start, levels, **options, **noise)), expected)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(float64_scheduler, toy, start, run, target, spacing, n, order, assert_close, config, levels_of):
    twice = spacing == "karras"  # sigma_min stands at the end twice; diffusers' last step is 0 / 0
    theirs = float64_scheduler(
        DEISMultistepScheduler, **config(target, spacing), solver_order=order, lower_order_final=not twice
    )
    theirs.set_timesteps(n)
    levels = levels_of(theirs.sigmas, theirs.timesteps)
    levels = levels[:-1] if twice else levels
    net = toy(target)
    expected = run_dpm(theirs, net, start, levels[:-1])
    assert_close(run(deis(net, start, levels, order=order, lower_order_final=not twice)), expected)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(float64_scheduler, toy, start, run, target, spacing, n, order, form, assert_close, config, levels_of):
    """bh1 to a final sigma of zero is infinity times 0 in diffusers: compared at sigma_min."""
    final = "sigma_min" if form == "bh1" and spacing != "karras" else "zero"
    theirs = float64_scheduler(
        UniPCMultistepScheduler,
        **config(target, spacing),
        solver_order=order,
        solver_type=form,
        final_sigmas_type=final,
    )
    theirs.set_timesteps(n)
    levels = levels_of(theirs.sigmas, theirs.timesteps)
    net = toy(target)
    expected = run_dpm(theirs, net, start, levels[:-1])
    if form == "bh1" and spacing == "karras":
        assert (
            not torch.isfinite(expected).all()
            and torch.isfinite(run(unipc(net, start, levels, order=order, form=form))).all()
        )
    else:
        assert_close(run(unipc(net, start, levels, order=order, form=form)), expected)


@pytest.mark.parametrize("blocks", [4, 8, 16])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("solver", "algorithm", "order"),
    [("dpm_solver", "dpmsolver", 2), ("dpm_solver", "dpmsolver", 3), ("dpmpp_2s", "dpmsolver++", 2)],
)
def test_single_step_dpm(
    float64_scheduler, toy, start, run, solver, algorithm, order, target, blocks, assert_close, config
):
    """diffusers spreads the stages of a step over its list: where that is uniform in log-SNR, its stages are ours.

    Of order 3 its two forms each mix a stage of the paper with another one. The paper's Algorithm 5, and the authors'
    code, have the second stage of one ("heun") and the third of the other ("midpoint").
    """
    n = order * blocks
    theirs = float64_scheduler(
        DPMSolverSinglestepScheduler,
        **{k: v for k, v in config(target, "leading").items() if k not in ("timestep_spacing", "use_karras_sigmas")},
        solver_order=order,
        algorithm_type=algorithm,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(n)
    first, last = SCHEDULE.level(999).log_snr, SCHEDULE.level(0).log_snr
    fine = [SCHEDULE.level_of(first + (last - first) * i / n) for i in range(n + 1)]
    theirs.sigmas = torch.tensor([level.noise_ratio for level in fine], dtype=torch.float64)
    net, expected = toy(target), start
    for i, (level, t) in enumerate(zip(fine, theirs.timesteps, strict=False)):
        theirs.register_to_config(solver_type="heun" if order == 3 and i % 3 == 1 else "midpoint")
        expected = theirs.step(net.output(expected, level.t), t, expected).prev_sample
    coarse = fine[::order]
    ours = dpm_solver(net, start, coarse, order=order) if solver == "dpm_solver" else dpmpp_2s(net, start, coarse)
    assert_close(run(ours), expected)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("final", ["zero", "first"])
def test_dpmpp_3m_sde_is_k_diffusions(toy, start, run, eta, final, shared_noise, assert_close):
    """diffusers' third-order SDE step has the sign of its D2 term wrong (41 % off at 10 steps), so this
    is the published k-diffusion recurrence, in its own variables: x / alpha, sigma, t = -log sigma."""
    levels = make_levels(SCHEDULE, 20, "karras", final=final)[: None if final == "zero" else -1]
    net, noise = toy("v_prediction"), shared_noise(5)
    x, d, h = start / levels[0].alpha, [], []
    for now, next in itertools.pairwise(levels):
        d.insert(0, net(now.alpha * x, now).x0)
        if next.sigma == 0:
            x = d[0]
            break
        h.insert(0, math.log(now.noise_ratio) - math.log(next.noise_ratio))
        he = h[0] * (eta + 1)
        x = math.exp(-he) * x - math.expm1(-he) * d[0]
        phi_2 = math.expm1(-he) / he + 1
        if len(d) == 2:
            x = x + phi_2 * (d[0] - d[1]) / (h[1] / h[0])
        elif len(d) > 2:
            r0, r1 = h[1] / h[0], h[2] / h[0]
            d10, d11 = (d[0] - d[1]) / r0, (d[1] - d[2]) / r1
            d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / he - 0.5) * d2
        if eta:
            x = x + noise(x) * next.noise_ratio * math.sqrt(-math.expm1(-2 * h[0] * eta))
    ours = run(dpmpp_3m_sde(net, start, levels, noise=shared_noise(5), eta=eta))
    assert_close(ours, x * levels[-1].alpha)
