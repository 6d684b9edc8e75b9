"""What these tests share: diffusers' schedulers in float64, toy networks, and data whose denoiser is exact."""

import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from samplers import TARGETS, DiscreteSchedule, Level, Prediction


class _Lift:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture
def float64_scheduler(monkeypatch):
    """Makes a diffusers scheduler whose tables are float64 instead of float32; nothing else of it is changed."""

    def make(cls, **config):
        for name in (cls.__module__, "diffusers.schedulers.scheduling_utils"):
            module = sys.modules.get(name)
            if hasattr(module, "torch"):
                monkeypatch.setattr(module, "torch", _Lift(torch))
            if hasattr(module, "np"):
                monkeypatch.setattr(module, "np", _Lift(np))
        torch.set_default_dtype(torch.float64)
        try:
            return cls(**config)
        finally:
            torch.set_default_dtype(torch.float32)

    return make


@dataclass(frozen=True)
class Toy:
    """A smooth function of (x, t) that stands for a network with the given target."""

    target: str = "epsilon"

    def output(self, x, t):
        return torch.sin(1.3 * x + float(t) / 300) + 0.4 * x.roll(1, -1)

    def __call__(self, x, level):
        x0 = TARGETS[self.target]().x0(self.output(x, level.t), x, level.alpha, level.sigma)
        return Prediction(x, level, x0)


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def start():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Data from a mixture of Gaussians in each coordinate: scores, denoisers and class posteriors are exact."""

    means: tuple = (2.0, -1.0)
    stds: tuple = (0.5, 0.8)
    weights: tuple = (0.4, 0.6)

    def log_joint(self, x, level):
        """log p(y) + log p_t(x | y), a row a class."""
        rows = []
        for m, s, w in zip(self.means, self.stds, self.weights, strict=True):
            var = level.alpha**2 * s**2 + level.sigma**2
            rows.append(math.log(w) - 0.5 * math.log(2 * math.pi * var) - (x - level.alpha * m) ** 2 / (2 * var))
        return torch.stack(rows)

    def class_x0(self, x, level, y):
        m, var0 = self.means[y], self.stds[y] ** 2
        return m + var0 * level.alpha * (x - level.alpha * m) / (level.alpha**2 * var0 + level.sigma**2)

    def x0(self, x, level):
        posterior = self.log_joint(x, level).softmax(0)
        return sum(posterior[y] * self.class_x0(x, level, y) for y in range(len(self.means)))

    def grad_log_posterior(self, x, level, y):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.log_joint(x, level).log_softmax(0)[y].sum(), x)
        return gradient

    def guided_score(self, x, level, y, scale):
        """grad_x log p_t(x) p_t(y | x)^scale."""
        x = x.detach().requires_grad_()
        joint = self.log_joint(x, level)
        (score,) = torch.autograd.grad((joint.logsumexp(0) + scale * joint.log_softmax(0)[y]).sum(), x)
        return score

    def evaluate(self, y=0, unconditional_base=False):
        """Branches cond, uncond, weak and classifier; with `unconditional_base`, "cond" is the unconditional one."""

        def evaluate(x, level, branches):
            evaluate.calls.append(tuple(branches))
            predictions = {}
            for name in branches:
                if name == "classifier":
                    predictions[name] = Prediction(x, level, x, score_shift=self.grad_log_posterior(x, level, y))
                elif name == "uncond" or (name == "cond" and unconditional_base):
                    predictions[name] = Prediction(x, level, self.x0(x, level))
                elif name == "cond":
                    predictions[name] = Prediction(x, level, self.class_x0(x, level, y))
                elif name == "energy":
                    predictions[name] = Prediction(x, level, x, score_shift=-x)
                else:
                    predictions[name] = Prediction(x, level, 0.9 * self.x0(x, level) + 0.05)
            return predictions

        evaluate.calls = []
        return evaluate


@pytest.fixture
def mixture():
    return Mixture()


class LogSnrPath:
    """The variance-preserving path whose time is the log-SNR itself."""

    def level_of(self, log_snr):
        return Level(log_snr, 1 / math.hypot(1, math.exp(-log_snr)), 1 / math.hypot(1, math.exp(log_snr)), self)


@pytest.fixture
def uniform_levels():
    """n steps of equal length in log-SNR on the variance-preserving path."""

    def make(n, first=-3.0, last=3.0):
        return [LogSnrPath().level_of(first + (last - first) * i / n) for i in range(n + 1)]

    return make


@pytest.fixture
def run():
    """The last x of a solver."""

    def last(steps):
        return list(steps)[-1].x

    return last


@pytest.fixture
def shared_noise():
    """Noise that a diffusers scheduler draws too, from a generator of the same seed."""

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        return lambda like, *_: torch.randn(like.shape, generator=generator, dtype=like.dtype)

    return make


@pytest.fixture
def assert_close():
    """Equality in float64, relative to the largest value."""

    def check(ours, theirs, tolerance=1e-8):
        assert ours.dtype == theirs.dtype == torch.float64
        assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())

    return check


SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.fixture
def config():
    """The configuration of a diffusers scheduler with Stable Diffusion's betas; "karras" is a spacing here."""

    def make(target, spacing):
        karras = spacing == "karras"
        options = {"timestep_spacing": "leading" if karras else spacing, "use_karras_sigmas": karras}
        shared = {k: v for k, v in SCHEDULE.config().items() if k != "rescale_betas_zero_snr"}
        return {**shared, "prediction_type": target, **options}

    return make


@pytest.fixture
def levels_of():
    """Our levels for a scheduler's list of sigmas and times."""

    def make(sigmas, times):
        alphas = [1 / math.hypot(1, float(s)) for s in sigmas]
        levels = zip(sigmas, alphas, [*times, 0.0], strict=True)
        return [Level(float(t), alpha, float(s) * alpha, SCHEDULE) for s, alpha, t in levels]

    return make
