"""Noise schedules: alpha and sigma as functions of t. Which levels a sampler visits is decided in spacing.py."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from samplers.level import MAX_TIMESTEPS, Level, Schedule

BetaSchedule = Literal["linear", "scaled_linear", "cosine", "sigmoid"]

_DIFFUSERS_COSINE = "squaredcos_cap_v2"


def _betas(kind: str, T: int, start: float, end: float) -> list[float]:
    if kind == "cosine":  # Nichol & Dhariwal 2021, eq. 17, with s = 0.008 and betas clipped at 0.999
        f = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
        return [min(1 - f[i + 1] / f[i], 0.999) for i in range(T)]
    if kind == "sigmoid":  # Xu et al. 2022 (GeoDiff), arXiv:2203.02923, appendix
        return [start + (end - start) / (1 + math.exp(6 - 12 * i / (T - 1))) for i in range(T)]
    power = 2 if kind == "scaled_linear" else 1
    a, b = start ** (1 / power), end ** (1 / power)
    return [(a + (b - a) * i / (T - 1)) ** power for i in range(T)]


class DiscreteSchedule(Schedule):
    """The variance-preserving schedule of DDPM: T betas, alpha_bar_t = prod(1 - beta), between them linear in log-SNR
    (before a level of pure noise, where that is infinite, in alpha).

    `linear` is linear in beta (Ho et al. 2020), `scaled_linear` in sqrt(beta) (latent diffusion calls that "linear"),
    `cosine` follows Nichol & Dhariwal 2021, `sigmoid` GeoDiff. `rescale_zero_snr` makes the last level pure noise (Lin
    et al. 2024, Algorithm 1).
    """

    family: ClassVar[str] = "variance preserving"

    def __init__(
        self,
        beta_schedule: BetaSchedule = "linear",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale_zero_snr: bool = False,
    ) -> None:
        if beta_schedule not in get_args(BetaSchedule):
            raise ValueError(f"beta_schedule must be one of {', '.join(get_args(BetaSchedule))}; got {beta_schedule!r}")
        _check_timesteps(num_train_timesteps)
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"expected 0 < beta_start <= beta_end < 1; got {beta_start}, {beta_end}")
        self.beta_schedule, self.num_train_timesteps = beta_schedule, int(num_train_timesteps)
        self.beta_start, self.beta_end = float(beta_start), float(beta_end)
        self.rescale_zero_snr = bool(rescale_zero_snr)

        log_alpha, levels = 0.0, []
        for t, beta in enumerate(_betas(beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)):
            log_alpha += 0.5 * math.log1p(-beta)
            levels.append(Level(float(t), math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)), self))
        if rescale_zero_snr:
            first, last = levels[0].alpha, levels[-1].alpha
            alphas = [(level.alpha - last) * first / (first - last) for level in levels]
            levels = [Level(float(t), a, math.sqrt(1 - a * a), self) for t, a in enumerate(alphas)]
        self._levels = levels
        self._log_snr = [level.log_snr for level in levels]
        self._tables: dict[torch.device, Tensor] = {}

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        _check_times(t, self.num_train_timesteps)
        table = self._table(t.device)  # (2, T): alpha, sigma
        low = t.floor().long().clamp(0, self.num_train_timesteps - 1)
        high = (low + 1).clamp(max=self.num_train_timesteps - 1)
        w = t.to(table.dtype) - low
        a0, s0, a1, s1 = *table[:, low], *table[:, high]  # each shaped like t
        # linear in log-SNR: alpha / sigma is the weighted geometric mean of its two neighbours
        alpha, sigma = a0 ** (1 - w) * a1**w, s0 ** (1 - w) * s1**w
        norm = torch.hypot(alpha, sigma)
        alpha, sigma = alpha / norm, sigma / norm
        if self._levels[-1].alpha == 0:
            to_noise = (1 - w) * a0  # alpha before the level of pure noise
            alpha = torch.where(a1 > 0, alpha, to_noise)
            sigma = torch.where(a1 > 0, sigma, (1 - to_noise**2).sqrt())
        whole = w == 0
        return torch.where(whole, a0, alpha).to(dtype), torch.where(whole, s0, sigma).to(dtype)

    def level(self, t: float) -> Level:
        _check_time(t, self.num_train_timesteps)
        low = math.floor(t)
        if low == t:
            return self._levels[low]
        a, b, w = self._levels[low], self._levels[low + 1], t - low
        if b.alpha == 0:
            alpha = (1 - w) * a.alpha
            return Level(float(t), alpha, math.sqrt(1 - alpha**2), self)
        alpha, sigma = a.alpha ** (1 - w) * b.alpha**w, a.sigma ** (1 - w) * b.sigma**w
        norm = math.hypot(alpha, sigma)
        return Level(float(t), alpha / norm, sigma / norm, self)

    def level_of(self, log_snr: float) -> Level:
        ratio = math.exp(-log_snr)
        return Level(self.time_of(log_snr), 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio), self)

    def time_of(self, log_snr: float) -> float:
        """The time of a log-SNR, the inverse of `level`; clipped to [0, T-1]."""
        T = self.num_train_timesteps
        high = bisect.bisect_left(self._log_snr, -log_snr, key=lambda value: -value)  # log-SNR falls with t
        if high == 0 or high == T:
            return float(min(high, T - 1))
        a, b = self._log_snr[high - 1], self._log_snr[high]
        if math.isfinite(b):
            return high - 1 + (a - log_snr) / (a - b)
        return high - 1 + (1 - math.hypot(1, math.exp(-a)) / math.hypot(1, math.exp(-log_snr)))

    def times_of(self, log_snr: Tensor) -> Tensor:
        dtype = torch.float32 if log_snr.device.type == "mps" else torch.float64
        noise = -torch.tensor(self._log_snr, dtype=dtype, device=log_snr.device)  # (T,), rising with t
        target = -log_snr.to(dtype)
        high = torch.searchsorted(noise, target).clamp(1, self.num_train_timesteps - 1)
        a, b = noise[high - 1], noise[high]
        to_noise = 1 - torch.hypot(torch.ones_like(a), a.exp()) / torch.hypot(torch.ones_like(a), target.exp())
        between = torch.where(b.isfinite(), (target - a) / (b - a), to_noise)
        return (high - 1 + between.clamp(0, 1)).to(log_snr.dtype)

    def config(self) -> dict[str, Any]:
        return {
            "num_train_timesteps": self.num_train_timesteps,
            "beta_schedule": _DIFFUSERS_COSINE if self.beta_schedule == "cosine" else self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "rescale_betas_zero_snr": self.rescale_zero_snr,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DiscreteSchedule:
        if config.get("trained_betas") is not None:
            raise ValueError("trained_betas in the scheduler configuration are not supported; name a beta_schedule")
        options = _given(config, "num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
        if options.get("beta_schedule") == _DIFFUSERS_COSINE:
            options["beta_schedule"] = "cosine"
        return cls(**options, rescale_zero_snr=config.get("rescale_betas_zero_snr", False))

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
            rows = [[level.alpha for level in self._levels], [level.sigma for level in self._levels]]
            self._tables[device] = torch.tensor(rows, dtype=torch.float64).to(device=device, dtype=dtype)
        return self._tables[device]


class EDMSchedule(Schedule):
    """The variance-exploding path of EDM: alpha = 1, log sigma linear in t between its ends (Karras et al. 2022).

    Samples start from levels[0].sigma * noise, not from unit noise.
    """

    family: ClassVar[str] = "edm"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, num_train_timesteps: int = 1000) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"expected 0 < sigma_min < sigma_max; got {sigma_min}, {sigma_max}")
        _check_timesteps(num_train_timesteps)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.num_train_timesteps = int(num_train_timesteps)
        self._log_slope = math.log(self.sigma_max / self.sigma_min) / (self.num_train_timesteps - 1)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _check_times(t, self.num_train_timesteps)
        sigma = self.sigma_min * torch.exp(self._log_slope * (t if t.dtype == torch.float64 else t.float()))
        return torch.ones_like(sigma), sigma

    def level(self, t: float) -> Level:
        _check_time(t, self.num_train_timesteps)
        return Level(float(t), 1.0, self.sigma_min * math.exp(self._log_slope * t), self)

    def level_of(self, log_snr: float) -> Level:
        t = (-log_snr - math.log(self.sigma_min)) / self._log_slope
        return Level(min(max(t, 0.0), self.num_train_timesteps - 1.0), 1.0, math.exp(-log_snr), self)

    def times_of(self, log_snr: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return ((-log_snr - low) / (high - low)).clamp(0, 1) * (self.num_train_timesteps - 1)

    def config(self) -> dict[str, Any]:
        return {
            "num_train_timesteps": self.num_train_timesteps,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EDMSchedule:
        return cls(**_given(config, "num_train_timesteps", "sigma_min", "sigma_max"))


class FlowSchedule(Schedule):
    """Rectified flow: alpha = 1 - s, sigma = s, with s = (t + 1) / T (Liu et al. 2022; Esser et al. 2024).

    The last level, s = 1, is pure noise. The networks of Stable Diffusion 3 take T s, that is t + 1.
    """

    family: ClassVar[str] = "flow"

    def __init__(self, num_train_timesteps: int = 1000) -> None:
        _check_timesteps(num_train_timesteps)
        self.num_train_timesteps = int(num_train_timesteps)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _check_times(t, self.num_train_timesteps)
        sigma = ((t if t.dtype == torch.float64 else t.float()) + 1) / self.num_train_timesteps
        return 1 - sigma, sigma

    def level(self, t: float) -> Level:
        _check_time(t, self.num_train_timesteps)
        s = (t + 1) / self.num_train_timesteps
        return Level(float(t), 1 - s, s, self)

    def level_of(self, log_snr: float) -> Level:
        s = 1 / (1 + math.exp(log_snr))
        return Level(max(s * self.num_train_timesteps - 1, 0.0), 1 - s, s, self)

    def times_of(self, log_snr: Tensor) -> Tensor:
        T = self.num_train_timesteps
        return (torch.sigmoid(-log_snr) * T - 1).clamp(0, T - 1)

    def config(self) -> dict[str, Any]:
        return {"num_train_timesteps": self.num_train_timesteps, "shift": 1.0, "use_dynamic_shifting": False}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlowSchedule:
        if config.get("shift", 1.0) != 1 or config.get("use_dynamic_shifting"):
            raise ValueError(f"shift {config.get('shift')}: only flows without a shift of time are supported")
        return cls(**_given(config, "num_train_timesteps"))


def _given(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}


def _check_timesteps(T: int) -> None:
    if not 2 <= T <= MAX_TIMESTEPS:
        raise ValueError(f"num_train_timesteps must be at least 2 and at most {MAX_TIMESTEPS}; got {T}")


def _check_time(t: float, T: int) -> None:
    if not 0 <= t <= T - 1:
        raise ValueError(f"times must be in [0, {T - 1}]; got {t}")


def _check_times(t: Tensor, T: int) -> None:
    if t.device.type == "cpu" and t.numel() and not (t.min() >= 0 and t.max() <= T - 1):  # elsewhere it would wait
        raise ValueError(f"times must be in [0, {T - 1}]; got {t.min().item()} to {t.max().item()}")
