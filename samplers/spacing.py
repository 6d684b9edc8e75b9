"""Which levels of a schedule a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from samplers.level import Level, Schedule

Spacing = Literal[
    "leading", "trailing", "linspace", "quadratic", "beta", "karras", "exponential", "log_snr", "ays_sd", "ays_sdxl",
    "ays_svd",
]  # fmt: skip
Final = Literal["zero", "first"]

# Sabour et al. 2024, arXiv:2404.14507 (Align Your Steps): the published noise ratios of 10 steps
ALIGN_YOUR_STEPS = {
    "ays_sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def make_levels(
    schedule: Schedule,
    num_steps: int,
    spacing: Spacing = "trailing",
    *,
    steps_offset: int = 0,
    drop_last: bool = False,
    final: Final = "zero",
    rho: float = 7.0,
    shift: float = 1.0,
    round_times: bool = False,
) -> tuple[Level, ...]:
    """The num_steps + 1 levels that a solver visits, from the noisiest one down to `final`.

    final: "zero" ends at sigma = 0, "first" at the level of t = 0 (Stable Diffusion's DDIM, set_alpha_to_one=False);
    where a spacing visits t = 0 itself, that level is then there twice, the same to the last bit.
    By time (see `spaced_times`): leading, trailing, linspace, quadratic, beta. By noise ratio r = sigma / alpha,
    between the ends of the whole schedule: karras (with `rho`); exponential, equal steps in log r, both ends among the
    num_steps; log_snr, equal steps of which the last one would end at t = 0. ays_sd, ays_sdxl, ays_svd: the published
    Align-Your-Steps tables, interpolated in log r where num_steps is not 10, and cut at t = 0 where that is final.
    There the time is fractional, or with `round_times` the nearest whole one, as in some diffusers schedulers. `shift`
    moves whole-time spacings towards noise: s -> shift s / (1 + (shift - 1) s) of s = (t + 1) / T (Esser et al. 2024,
    arXiv:2403.03206, eq. 23).
    """
    T = schedule.num_train_timesteps
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}; got {spacing!r}")
    for name, value in (("rho", rho), ("shift", shift)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive; got {value}")
    if spacing in ("leading", "trailing", "linspace", "quadratic", "beta"):
        times = spaced_times(T, num_steps, spacing, steps_offset=steps_offset, drop_last=drop_last)
        if shift != 1:
            times = _shifted(times, T, shift)
        return levels_at(schedule, times, final)
    _check_steps(num_steps, T)
    last = _final_level(schedule, final)
    levels = [schedule.level_of(-math.log(r)) for r in _ratios(schedule, num_steps, spacing, rho, last.noise_ratio)]
    if round_times:
        levels = [replace(level, t=float(round(level.t))) for level in levels]
    if final == "first" and spacing in ("karras", "exponential") and num_steps > 1:
        levels[-1] = last  # they visit t = 0; by way of the ratio it would differ in its last digits
    return (*levels, last)


def levels_at(schedule: Schedule, times: Sequence[float], final: Final = "zero") -> tuple[Level, ...]:
    """The levels of falling times, and the one at which sampling ends: sigma = 0, or that of t = 0."""
    if not times:
        raise ValueError("expected at least one time; got none")
    return (*(schedule.level(float(t)) for t in times), _final_level(schedule, final))


def spaced_times(
    T: int, num_steps: int, spacing: str, *, steps_offset: int = 0, drop_last: bool = False
) -> list[float]:
    """`num_steps` falling times out of 0 .. T-1 (Lin et al. 2024, arXiv:2305.08891, Table 2).

    leading: multiples of T // n, plus `steps_offset` (1 for Stable Diffusion). trailing: from T-1 down. linspace: both
    ends. With `drop_last`, leading and linspace take n + 1 points and leave out the last, as DPM-Solver's and UniPC's
    code do. Not whole times: quadratic, both ends with t proportional to i^2 (Song et al. 2021, appendix D.2); beta,
    quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv:2407.12173), dense at both ends.
    """
    _check_steps(num_steps, T)
    n = num_steps + drop_last
    if spacing == "leading":
        times: list[float] = [i * (T // n) + steps_offset for i in reversed(range(n))]
    elif spacing == "trailing":
        times = [round(T - i * (T / num_steps)) - 1 for i in range(num_steps)]
    elif spacing == "linspace":
        times = [round((T - 1) * i / (n - 1)) for i in reversed(range(n))] if n > 1 else [T - 1]
    elif spacing == "quadratic":
        times = [(T - 1) * (i / (n - 1)) ** 2 for i in reversed(range(n))] if n > 1 else [T - 1]
    elif spacing == "beta":
        times = [(T - 1) * beta_quantile(1 - i / num_steps) for i in range(num_steps)]
    else:
        raise ValueError(f"spaced_times takes leading, trailing, linspace, quadratic and beta; got {spacing!r}")
    times = times[:num_steps]
    if times[0] > T - 1 or times[-1] < 0:
        raise ValueError(f"{num_steps} {spacing} steps, steps_offset {steps_offset}, leave the times 0 to {T - 1}")
    if len(set(times)) < num_steps:
        raise ValueError(f"{num_steps} steps with spacing {spacing} repeat a time: there are only {T}")
    return [float(t) for t in times]


def karras_ratios(num_steps: int, smallest: float, largest: float, rho: float = 7.0) -> list[float]:
    """Falling noise ratios sigma / alpha (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    a, b = largest ** (1 / rho), smallest ** (1 / rho)
    return [(a + i / max(num_steps - 1, 1) * (b - a)) ** rho for i in range(num_steps)]


def beta_quantile(p: float, a: float = 0.6, b: float = 0.6) -> float:
    """The x at which the distribution function of Beta(a, b) is p, by bisection."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _beta_cdf(middle, a, b) < p else (low, middle)
    return middle


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its series (Abramowitz & Stegun 26.5.4), from the nearer end."""
    if x > 0.5:
        return 1 - _beta_cdf(1 - x, b, a)
    term = total = 1 / a
    n = 0
    while term > 1e-17 * total:
        n += 1
        term *= (n - b) * x / n * (a + n - 1) / (a + n)
        total += term
    return total * x**a * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


def _shifted(times: Sequence[float], T: int, shift: float) -> list[float]:
    """The times towards noise where `shift` is above 1; ValueError where two of them are the first one below 1."""
    shifted = [T * shift * (t + 1) / (T + (shift - 1) * (t + 1)) - 1 for t in times]
    within = [min(max(t, 0.0), T - 1.0) for t in shifted]
    if len(set(within)) < len(within):
        raise ValueError(f"shift {shift} moves several of these times below 0: take fewer steps or a larger shift")
    return within


def _ratios(schedule: Schedule, num_steps: int, spacing: str, rho: float, final: float) -> list[float]:
    """Falling noise ratios, all of them above `final` or, the last of karras and exponential, at the first level's."""
    if spacing in ALIGN_YOUR_STEPS:
        table: tuple[float, ...] = ALIGN_YOUR_STEPS[spacing]
        if final > table[-1]:
            table = (*(ratio for ratio in table if ratio > final), final)
        return _interpolate([math.log(ratio) for ratio in table], num_steps)
    smallest, largest = schedule.level(0).noise_ratio, schedule.level(schedule.num_train_timesteps - 1).noise_ratio
    if not math.isfinite(largest):
        raise ValueError(f"{spacing} spacing needs a finite last sigma / alpha; this schedule ends in pure noise")
    if spacing == "karras":
        return karras_ratios(num_steps, smallest, largest, rho)
    intervals = num_steps if spacing == "log_snr" else max(num_steps - 1, 1)
    return [largest * (smallest / largest) ** (i / intervals) for i in range(num_steps)]


def _interpolate(logs: Sequence[float], num_steps: int) -> list[float]:
    """The first num_steps of num_steps + 1 values, linear between those given."""
    values = []
    for i in range(num_steps):
        at = i * (len(logs) - 1) / num_steps
        k = min(int(at), len(logs) - 2)
        values.append(math.exp(logs[k] + (at - k) * (logs[k + 1] - logs[k])))
    return values


def _check_steps(num_steps: int, T: int) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"the number of steps must be a whole number of at least 1; got {num_steps!r}")
    if num_steps > T:
        raise ValueError(f"{num_steps} steps are more than the schedule's {T} times")


def _final_level(schedule: Schedule, final: str) -> Level:
    if final not in get_args(Final):
        raise ValueError(f"final must be one of {', '.join(get_args(Final))}; got {final!r}")
    return Level(0.0, 1.0, 0.0, schedule) if final == "zero" else schedule.level(0)
