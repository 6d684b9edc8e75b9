"""Where the denoiser is exact, each solver's error falls at its stated order, and each SDE solver has
the right distribution.
"""

import itertools
import math

import pytest
import torch
from scipy.integrate import solve_ivp

from samplers import BrownianNoise, DiscreteSchedule, Level, Prediction, get_sampler, guide, make_levels, samplers

MEAN, STD = 1.5, 0.4

# name, options, the order of its error where its start is good and its last step not lowered (`full_order`), a count
# of steps that shows it
FINE = {"lower_order_final": False}
ORDERS = [
    ("ddim", {}, 1, 80),
    ("euler", {}, 1, 80),
    ("heun", {}, 2, 80),
    ("dpm_2", {}, 2, 80),
    ("plms", {}, 2, 80),
    ("lms", {"order": 2}, 2, 160),
    ("lms", {"order": 3}, 3, 160),
    ("lms", {}, 4, 320),
    ("deis", {"order": 1}, 1, 80),
    ("deis", {"order": 2}, 2, 80),
    ("deis", {}, 3, 80),
    ("dpm_solver", {"order": 1}, 1, 80),
    ("dpm_solver", {"order": 2}, 2, 80),
    ("dpm_solver", {}, 3, 80),
    ("dpmpp_2s", {}, 2, 80),
    ("dpmpp_2m", {}, 2, 80),
    ("dpmpp_2m", {"form": "heun"}, 2, 80),
    ("dpmpp_3m", {}, 2, 160),  # as published: asymptotically of second order
    ("dpmpp_3m", {"corrected": True}, 3, 160),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2, 80),
    ("dpmpp_3m_sde", {"eta": 0.0}, 2, 160),
    ("dpmpp_3m_sde", {"eta": 0.0, "corrected": True}, 3, 160),
    ("dpmpp_sde", {"eta": 0.0}, 2, 80),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2, 80),
    ("dpm_2_ancestral", {"eta": 0.0}, 2, 80),
    ("euler_ancestral", {"eta": 0.0}, 1, 80),
    ("unipc", {"order": 1, **FINE}, 2, 80),  # the corrector lifts the order by one
    ("unipc", {"order": 2, **FINE}, 3, 80),
    ("unipc", {"order": 2, "form": "bh1", **FINE}, 3, 160),
    ("unipc", {"order": 3, **FINE}, 4, 160),
]
# the same from its own start, where the first steps count; with the default options it is `order`
OWN_START = {
    **{(name, ()): info.order for name, info in samplers().items() if info.deterministic and name != "rk45"},
    ("lms", (("order", 3),)): 2,
    ("deis", (("order", 2),)): 2,
    ("dpmpp_3m", (("corrected", True),)): 2,
    ("unipc", (("order", 3),)): 2,
    ("unipc", (("order", 2), *FINE.items())): 3,
    ("unipc", (("order", 3), *FINE.items())): 3,
}
# log-SNR from -10: there the denoised estimate hardly moves, so the first steps of a multistep method spoil nothing
SPAN = (-10.0, 3.0)
SHORT_SPAN = (-1.0, 2.0)
X = torch.tensor([-2.0, -0.5, 0.3, 1.0, 2.2], dtype=torch.float64)


@pytest.fixture(scope="module")
def flow():
    """The end of the mixture's exact probability flow, by another program."""
    cache = {}

    def end(mixture, first, last):
        def slope(log_snr, y):  # dy / dlambda = -r eps, y = x / alpha
            r = math.exp(-log_snr)
            level = Level(0.0, 1 / math.hypot(1, r), r / math.hypot(1, r))
            return r * level.sigma * mixture.guided_score(torch.from_numpy(y) * level.alpha, level, 0, 0.0).numpy()

        key = mixture, first, last
        if key not in cache:
            span, y = (first.log_snr, last.log_snr), (X / first.alpha).numpy()
            y = solve_ivp(slope, span, y, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
            cache[key] = torch.from_numpy(y) * last.alpha
        return cache[key]

    return end


@pytest.mark.parametrize(("name", "options", "order", "n"), ORDERS)
def test_order_of_convergence_on_a_mixture(measured_order, name, options, order, n):
    assert measured_order(name, options, n, SPAN) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("name", "options"), OWN_START)
def test_order_of_convergence_from_the_solvers_own_start(measured_order, name, options):
    assert measured_order(name, dict(options), 80, SHORT_SPAN) == pytest.approx(OWN_START[name, options], abs=0.1)


@pytest.fixture
def measured_order(mixture, uniform_levels, run, flow):
    """How the error of a solver falls from n to 2 n steps of equal length in log-SNR."""

    def measure(name, options, n, span):
        exact = flow(mixture, *uniform_levels(1, *span))

        def error(n):
            noise = lambda like, *_: torch.zeros_like(like)  # noqa: E731 - churn and eta are 0
            denoise = lambda x, level: Prediction(x, level, mixture.x0(x, level))  # noqa: E731
            x = run(get_sampler(name).function(denoise, X, uniform_levels(n, *span), noise=noise, **options))
            return (x - exact).abs().max().item()

        return math.log2(error(n) / error(2 * n))

    return measure


def test_every_solver_has_its_order_measured():
    assert {name for name, *_ in ORDERS} | {"ddpm", "rk45"} == set(samplers())
    for name, info in samplers().items():
        claims = [order for other, options, order, _ in ORDERS if other == name and info.deterministic]
        assert not claims or info.full_order in claims
        assert info.full_order >= info.order


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_rk45_keeps_its_tolerance_whatever_the_levels(mixture, uniform_levels, run, flow, tolerance):
    exact = flow(mixture, *uniform_levels(1, *SPAN))
    for n in (1, 7):
        calls = []

        def denoise(x, level, calls=calls):
            calls.append(level)
            return Prediction(x, level, mixture.x0(x, level))

        x = run(get_sampler("rk45").function(denoise, X, uniform_levels(n, *SPAN), rtol=tolerance, atol=tolerance))
        assert (x - exact).abs().max() < 30 * tolerance
        assert len(calls) < 500


def denoise(x, level, mean=MEAN, std=STD):
    x0 = mean + std**2 * level.alpha * (x - level.alpha * mean) / ((level.alpha * std) ** 2 + level.sigma**2)
    return Prediction(x, level, x0)


def moments(name, levels, start_var, std=STD, **options):
    """Mean and variance of a solver's output, exactly: for Gaussian data every step is affine in x and the noise."""
    draws = get_sampler(name).evaluations * (len(levels) - 1)
    # row 0: no impulse; row 1: one at the start; row 2 + i: one at draw i
    x = torch.full((draws + 2, 1), levels[0].alpha * MEAN, dtype=torch.float64)
    x[1] += start_var**0.5
    rows = itertools.count(2)

    def impulse(like, *_):
        unit = torch.zeros_like(like)
        unit[next(rows)] = 1
        return unit

    steps = get_sampler(name).function(lambda x, v: denoise(x, v, std=std), x, levels, noise=impulse, **options)
    x = list(steps)[-1].x
    return x[0].item(), ((x[1:] - x[0]) ** 2).sum().item()


SDES = {
    "ddpm": {},
    "ddim": {"eta": 1.0},
    "euler_ancestral": {},
    "dpm_2_ancestral": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_sde": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "heun": {"s_churn": 20.0, "s_tmax": 50.0},
    "euler": {"s_churn": 20.0, "s_tmax": 50.0},
}


@pytest.mark.parametrize("name", sorted(SDES))
def test_sde_solvers_reach_the_mean_and_variance(uniform_levels, name):
    assert set(SDES) >= {other for other, info in samplers().items() if not info.deterministic}
    errors = []
    for n in (50, 200):
        levels = uniform_levels(n, -5, 4)
        first, last = levels[0], levels[-1]
        mean, var = moments(name, levels, (first.alpha * STD) ** 2 + first.sigma**2, **SDES[name])
        assert mean == pytest.approx(last.alpha * MEAN, abs=0.3 / n)
        errors.append(abs(var - (last.alpha * STD) ** 2 - last.sigma**2))
    assert errors[1] < 0.02 and errors[1] < errors[0] / 3


def test_ddpm_with_all_steps_has_the_moments_of_the_data():
    errors = []
    for n in (250, 500, 1000):
        mean, var = moments("ddpm", make_levels(DiscreteSchedule("cosine"), n), 1.0)
        assert mean == pytest.approx(MEAN, abs=1e-3)
        errors.append(abs(var - STD**2))
    assert errors[-1] < 2e-3
    assert all(1.7 < a / b < 2.3 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize(("variance", "std"), [("large", 1.0), ("small", 0.0)])
def test_each_variance_is_exact_where_its_paper_says(uniform_levels, variance, std):
    """Ho et al. 2020, section 3.2: large is optimal for data of unit variance, small for a single point; 7 steps will
    do.
    """
    levels = uniform_levels(7)

    def var(level):
        return (level.alpha * std) ** 2 + level.sigma**2

    mean, variance_at_end = moments("ddpm", levels, var(levels[0]), std, variance=variance)
    assert mean == pytest.approx(levels[-1].alpha * MEAN, rel=1e-12)
    assert variance_at_end == pytest.approx(var(levels[-1]), rel=1e-12)


@pytest.mark.parametrize(
    "name", ["ddpm", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]
)
def test_on_one_brownian_path_more_steps_and_all_solvers_converge_to_one_sample(mixture, uniform_levels, run, name):
    def sample(name, n):
        noise = BrownianNoise(0, range(8))
        start = noise.initial((4,), torch.float64)
        return run(get_sampler(name).function(guide(mixture.evaluate()), start, uniform_levels(n, -4, 3), noise=noise))

    x = [sample(name, n) for n in (16, 64, 256)]
    assert (x[2] - x[1]).abs().mean() < 0.5 * (x[1] - x[0]).abs().mean()
    other = sample("dpmpp_2m_sde" if name == "ddpm" else "ddpm", 256)
    assert (x[2] - other).abs().mean() < 0.05  # where every such solver meets
