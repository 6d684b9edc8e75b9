"""What schedules, solvers and guidances share: a noise level, a prediction at one x_t, one step, the interfaces.

Everywhere x_t = alpha * x0 + sigma * eps, with eps a unit normal. torch is imported by the first computation only, so
that names, options and help of samplers and guidances are at hand without it.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

MAX_TIMESTEPS = 100_000  # a table of the schedule has a row a time

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


class NoisePath(Protocol):
    """What a level lies on: gives the level of any finite log-SNR."""

    def level_of(self, log_snr: float) -> Level: ...


def short_repr(record: Any) -> str:
    """The `repr` of a record: tensors by shape, `Step(x=float32 (4, 3, 8, 8), index=0)`, long values by length."""
    values = ((field.name, getattr(record, field.name)) for field in fields(record) if field.repr)
    return f"{type(record).__name__}({', '.join(f'{name}={_short(value)}' for name, value in values)})"


def _short(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    is_long = isinstance(value, tuple | list | Mapping) and len(value) > 4
    text = "" if is_long else repr(value)
    if text and len(text) <= 100:
        return text
    return f"<{type(value).__name__}{f' of {len(value)}' if hasattr(value, '__len__') else ''}>"


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level. Python floats, so that a solver's coefficients are float64 and never wait for a device."""

    t: float  # the time that the network is conditioned on, in [0, T-1]
    alpha: float
    sigma: float
    # for solvers that evaluate between two levels
    path: NoisePath | None = field(default=None, compare=False, repr=False)

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; +-inf at the two ends."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha: the sigma of k-diffusion and EDM; inf where alpha is 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model predicts of one batch of x_t.

    `x0` is the denoised estimate after the linear guidances. `score_shift`, the sum of the scaled
    grad_x log p(y | x_t), is kept apart because ODE solvers and ancestral ones use it differently. `renoise_eps` is the
    noise with which a solver re-noises where it is not the one that `x0` implies (CFG++).
    """

    x: Tensor  # (B, ...)
    level: Level
    x0: Tensor  # (B, ...)
    renoise_eps: Tensor | None = None
    score_shift: Tensor | None = None
    variance_fraction: Tensor | None = None  # learned variance: 0 is the small one, 1 the large one

    __repr__ = short_repr

    @property
    def denoised(self) -> Tensor:
        """x0 + sigma^2 / alpha * shift: Tweedie's formula for the guided score (at alpha = 0, just x0)."""
        if self.score_shift is None or self.level.alpha == 0:
            return self.x0
        return self.x0 + (self.level.sigma**2 / self.level.alpha) * self.score_shift

    @property
    def eps(self) -> Tensor:
        """The noise to step along: eps or `renoise_eps`, minus sigma * shift (Dhariwal & Nichol 2021, Algorithm 2)."""
        alpha, sigma = self.level.alpha, self.level.sigma
        if sigma == 0:
            raise ValueError("the noise in x is undefined at sigma = 0: x is x0 there")
        eps = (self.x - alpha * self.x0) / sigma if self.renoise_eps is None else self.renoise_eps
        return eps if self.score_shift is None else eps - sigma * self.score_shift

    @property
    def x_base(self) -> Tensor:
        """alpha * denoised + sigma * eps, where an exponential integrator starts: x, except under CFG++."""
        return self.x if self.renoise_eps is None else self.level.alpha * self.x0 + self.level.sigma * self.renoise_eps

    @property
    def velocity(self) -> Tensor:
        """v = alpha * eps - sigma * x0 (Salimans & Ho 2022, appendix D)."""
        return self.level.alpha * self.eps - self.level.sigma * self.denoised


@dataclass(frozen=True, slots=True)
class Step:
    """What a solver yields after each of its steps: x at `level`, and the denoised estimate that led there."""

    x: Tensor
    level: Level
    denoised: Tensor
    index: int  # 0, 1, ..., len(levels) - 2

    __repr__ = short_repr


Levels: TypeAlias = Sequence[Level]
Denoise: TypeAlias = Callable[[Tensor, Level], Prediction]
Evaluate: TypeAlias = Callable[[Tensor, Level, Sequence[str]], Mapping[str, Prediction]]
Solver: TypeAlias = Callable[..., Iterator[Step]]


class Noise(Protocol):
    """A source of unit-variance noise for the step now -> next; a Brownian path depends on the two levels."""

    def __call__(self, like: Tensor, now: Level, next: Level) -> Tensor: ...


def no_noise(like: Tensor, now: Level, next: Level) -> Tensor:
    """The default of solvers, for those that draw none; the registry refuses it for the others."""
    raise ValueError("this solver draws noise at its steps: pass noise, say SampleNoise(seed, indices)")


@runtime_checkable
class NamedBranches(Protocol):
    """An `Evaluate` with a known set of branches."""

    @property
    def branches(self) -> Collection[str]: ...


class Guidance:
    """Changes a prediction with the help of other branches of it. The defaults change nothing and need nothing.

    `stage` orders a list of guidances: 0 for the linear ones (which commute), more for others.
    """

    stage: ClassVar[int] = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The branches besides "cond" that it may need at some level."""
        return ()

    def branches(self, level: Level) -> tuple[str, ...]:
        """The branches besides "cond" that it needs at this level: () where `apply` returns what it is given."""
        return ()

    def apply(self, prediction: Prediction, raw: Mapping[str, Prediction]) -> Prediction:
        """The prediction after this guidance; `raw` are those of all branches."""
        return prediction

    def fresh(self) -> Guidance:
        """This guidance for a new run of a solver: one with a memory starts with an empty one."""
        return self


class Schedule(ABC):
    """A noise schedule for sampling and training; times are floats in [0, T-1]. Equal where the levels are."""

    family: ClassVar[str]  # that of the targets which are defined on it
    num_train_timesteps: int  # T

    @abstractmethod
    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shaped like t: float32, or float64 where t is."""

    @abstractmethod
    def level(self, t: float) -> Level:
        """The same for one time, in Python floats."""

    @abstractmethod
    def level_of(self, log_snr: float) -> Level:
        """The level of a finite log-SNR; beyond the ends of the schedule with its first or last time."""

    @abstractmethod
    def times_of(self, log_snr: Tensor) -> Tensor:
        """The times of log-SNRs, clipped to [0, T-1]."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The keys of a diffusers scheduler_config.json that describe this schedule."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """From a diffusers scheduler configuration; other keys are ignored."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Schedule) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(tuple(self.config().items()))


def pairs(levels: Sequence[Level]) -> Iterator[tuple[int, Level, Level]]:
    """(0, now, next), (1, now, next), ...: the steps of a solver."""
    for i, (now, next) in enumerate(itertools.pairwise(levels)):
        yield i, now, next


def first_order_only(now: Level, next: Level) -> bool:
    """Whether a step is too long for a correction that averages eps over it: then it is taken at first order.

    So are steps from pure noise and to none; and those over which sigma / alpha falls more than a hundredfold, such as
    the first of a cosine schedule (from 2e4): the correction multiplies what two eps differ in by half that factor.
    """
    return next.sigma == 0 or now.alpha == 0 or now.noise_ratio > 100 * next.noise_ratio


def lincomb(a: float, x: Tensor, *terms: tuple[float, Tensor]) -> Tensor:
    """a * x + b * y + ...: a new tensor, by one operation a term."""
    total = _zero().add(x, alpha=a)  # for the host this is a third quicker than a * x
    for b, y in terms:
        total.add_(y, alpha=b)
    return total


@functools.cache
def _zero() -> Tensor:
    """0 of no dimension, which takes on the dtype and the device of the other operand."""
    import torch

    return torch.zeros(())


def ddim_step(p: Prediction, next: Level, eps: Tensor | None = None) -> Tensor:
    """From p.x to the level `next` along the noise `eps`; by default the prediction's own, which is DDIM's step.

    It is the straight line y' = y + (r' - r) eps of the probability flow in y = x / alpha, r = sigma / alpha.
    """
    now = p.level
    if eps is None:
        if next.sigma == 0:
            return next.alpha * p.denoised
        a = next.sigma / now.sigma
        return lincomb(a, p.x_base, (next.alpha - a * now.alpha, p.denoised))
    if now.alpha == 0:
        return lincomb(next.alpha, p.denoised, (next.sigma, eps))
    a = next.alpha / now.alpha
    return lincomb(a, p.x_base, (next.sigma - a * now.sigma, eps))


def exp_neg_h(now: Level, next: Level) -> float:
    """e^-h, where h is the step in log-SNR; with no logarithm of 0, so that it is 0 where either end is infinite."""
    return (now.alpha * next.sigma) / (now.sigma * next.alpha)


def check_levels(levels: Sequence[Level], *, rising: bool = False, between: bool = False) -> tuple[Level, ...]:
    """The levels as a tuple, or a ValueError that names the first one that no solver can step to."""
    levels = tuple(levels)
    if len(levels) < 2:
        raise ValueError(f"a solver needs at least one step, that is two levels; got {len(levels)}")
    for i, level in enumerate(levels):
        if not (0 <= level.alpha < math.inf and 0 <= level.sigma < math.inf and level.alpha + level.sigma > 0):
            raise ValueError(f"level {i}: alpha and sigma must be finite, not negative, not both 0; got {level}")
        if between and level.path is None:
            raise ValueError(f"this solver evaluates between the levels: level {i} needs its `path` (see make_levels)")
    for i, now, next in pairs(levels):
        falls, last = now.noise_ratio > next.noise_ratio, i == len(levels) - 2
        fine = now.noise_ratio < next.noise_ratio if rising else falls or (last and now == next and now.sigma > 0)
        if not fine:
            change = f"from {now.noise_ratio:.6g} to {next.noise_ratio:.6g} at step {i}"
            raise ValueError(f"noise must {'rise' if rising else 'fall'} at every step; sigma / alpha goes {change}")
    return levels
