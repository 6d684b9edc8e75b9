"""From networks to predictions: a branch is (model, condition, perturbation); those of one model share one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning.condition import Condition
from ldm.models.backbone import Backbone
from ldm.models.caches import FeatureCache
from ldm.models.perturbation import Perturbation
from ldm.models.unet import UNet
from ldm.sampling.forward_process import Process
from samplers import Level, Prediction, Schedule


@dataclass(frozen=True)
class Branch:
    """A denoising network with the condition of each sample of the batch, and the perturbation of its layers."""

    model: nn.Module
    condition: Condition
    perturbation: Perturbation | None = None
    process: Process | None = None  # that this network was trained on; None: the sampler's


@dataclass(frozen=True)
class ClassifierBranch:
    """A noisy classifier with the class that each sample of the batch is to have."""

    model: nn.Module
    labels: Tensor  # (B,)
    schedule: Schedule | None = None  # that it was trained on; None: the sampler's


class Denoiser:
    """The `Evaluate` of the samplers over networks: the only place where sampling calls a network.

    A network of another schedule takes x_t at its own time of the same log-SNR, scaled to its own alpha and sigma.
    What follows from the conditions alone is computed once, so a denoiser is good for one run with fixed weights. With
    `feature_cache` N > 1 a U-Net is a `FeatureCache`: only every Nth call computes all of it. Branches of the same
    model, condition and perturbation are evaluated once, so that their predictions are equal bit for bit.
    The count `evaluations` grows by one a sample and branch, the cost in which samplers are compared.
    """

    def __init__(
        self,
        branches: Mapping[str, Branch | ClassifierBranch],
        process: Process,
        autocast: torch.dtype | None = None,
        feature_cache: int = 1,
    ) -> None:
        self.branches, self.process = dict(branches), process
        self.autocast, self.feature_cache = autocast, feature_cache
        self.evaluations = 0
        self.same_as = _same_branches(self.branches)
        self._inputs: dict[tuple[tuple[str, ...], int], dict[str, Any]] = {}
        self._feature_caches: dict[nn.Module, FeatureCache] = {}

    def __call__(self, x: Tensor, level: Level, names: Sequence[str]) -> Mapping[str, Prediction]:
        """Predictions for x (B, C, h, w) at `level` from the named branches.

        A classifier's prediction carries grad_x log p(y | x_t) as its `score_shift`. ValueError for an unknown branch.
        """
        unknown = [name for name in names if name not in self.branches]
        if unknown:
            raise ValueError(f"no branch {unknown[0]!r} here; there are {', '.join(self.branches)}")
        distinct = list(dict.fromkeys(self.same_as.get(name, name) for name in names))
        self.evaluations += len(distinct) * len(x)
        predictions: dict[str, Prediction] = {}
        by_model: dict[nn.Module, dict[str, Branch]] = {}
        for name in distinct:
            branch = self.branches[name]
            if isinstance(branch, ClassifierBranch):
                predictions[name] = Prediction(x, level, x, score_shift=self._gradient(branch, x, level))
            else:
                by_model.setdefault(branch.model, {})[name] = branch
        for model, branches in by_model.items():
            estimates, fractions = self._denoised(model, branches, x, level)
            for name, x0, fraction in zip(branches, estimates, fractions, strict=True):
                predictions[name] = Prediction(x, level, x0, variance_fraction=fraction)
        return {name: predictions[self.same_as.get(name, name)] for name in names}

    def _denoised(
        self, model: nn.Module, branches: Mapping[str, Branch], x: Tensor, level: Level
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """The denoised estimates (B, C, h, w) of all branches of one model, by one call of it, and the fractions of
        their learned variance, or None each.
        """
        process = next(iter(branches.values())).process or self.process
        own, scale = self._level_on(process.schedule, level)
        repeated = (x if scale == 1 else scale * x).repeat(len(branches), 1, 1, 1)  # (branches * B, C, h, w)
        model_input, c_noise = process.precondition(repeated, own.t, own.alpha, own.sigma)
        t = torch.full((len(model_input),), c_noise, device=x.device, dtype=x.dtype)
        inputs = self._fixed_inputs(model, branches, x)
        network: Callable[..., Tensor] = model
        if self.feature_cache > 1 and isinstance(model, UNet):
            network = self._feature_caches.setdefault(model, FeatureCache(model, self.feature_cache))
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            output = network(model_input, t, **inputs)
        output, fraction = split_variance(output.to(x.dtype), x.shape[1])
        x0 = process.prediction.x0(output, repeated, own.alpha, own.sigma).chunk(len(branches))
        return x0, [None] * len(branches) if fraction is None else fraction.chunk(len(branches))

    def _fixed_inputs(self, model: nn.Module, branches: Mapping[str, Branch], x: Tensor) -> dict[str, Any]:
        """The conditions and perturbations of these branches as inputs of their model, the same at every step."""
        key = tuple(branches), len(x)
        if key not in self._inputs:
            condition = Condition.cat([branch.condition for branch in branches.values()])
            perturbations = [
                (branch.perturbation, _branch_mask(index, len(branches), x))
                for index, branch in enumerate(branches.values())
                if branch.perturbation is not None
            ]
            inputs: dict[str, Any] = {"perturbations": perturbations} if perturbations else {}
            fixed_inputs = model.fixed_inputs if isinstance(model, Backbone) else Backbone.plain_inputs
            inputs |= fixed_inputs(condition.class_labels, condition.context)
            self._inputs[key] = inputs
        return self._inputs[key]

    def _gradient(self, branch: ClassifierBranch, x: Tensor, level: Level) -> Tensor:
        """grad_x log p(y | x_t), (B, C, h, w) (Dhariwal & Nichol 2021, section 4)."""
        own, scale = self._level_on(branch.schedule, level)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            t = torch.full((len(x),), own.t, device=x.device, dtype=x.dtype)
            with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
                logits = branch.model(leaf if scale == 1 else scale * leaf, t)  # (B, K)
            log_p = logits.to(x.dtype).log_softmax(-1).gather(-1, branch.labels[:, None])
            return torch.autograd.grad(log_p.sum(), leaf)[0]

    def _level_on(self, schedule: Schedule | None, level: Level) -> tuple[Level, float]:
        """The level of the same log-SNR on a network's own schedule, and the factor from x here to x there."""
        if schedule is None or schedule is self.process.schedule or schedule == self.process.schedule:
            return level, 1.0
        if math.isinf(level.log_snr):  # pure noise: the highest level that the network was trained on
            own = schedule.level(schedule.num_train_timesteps - 1)
            return own, math.hypot(own.alpha, own.sigma) / level.sigma
        own = schedule.level_of(level.log_snr)
        return own, own.sigma / level.sigma


def _same_branches(branches: Mapping[str, Branch | ClassifierBranch]) -> dict[str, str]:
    """Each branch that is the same as an earlier one, and that one; such as "uncond" where there is no condition."""
    same: dict[str, str] = {}
    for name, branch in branches.items():
        for other, earlier in branches.items():
            if other == name:
                break
            if not isinstance(branch, Branch) or not isinstance(earlier, Branch) or branch.model is not earlier.model:
                continue
            alike = branch.perturbation == earlier.perturbation and branch.process is earlier.process
            if alike and branch.condition.same_as(earlier.condition):
                same[name] = same.get(other, other)
                break
    return same


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """What a network predicts of x (B, C, h, w), and of an output (B, 2 C, h, w) the fraction of its learned variance.

    That is 0 where the variance is the small one, 1 where it is the large one.
    """
    if output.shape[1] != 2 * channels:
        return output, None
    prediction, values = output.chunk(2, dim=1)
    return prediction, (values + 1) / 2


def _branch_mask(index: int, count: int, x: Tensor) -> Tensor:
    """The samples of branch `index` among `count` joined ones: booleans (count * B,)."""
    mask = torch.zeros(count, len(x), dtype=torch.bool, device=x.device)
    mask[index] = True
    return mask.flatten()
