"""From networks to predictions: a branch is (model, condition, perturbation); those of one model share one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning import Condition
from ldm.models.caches import FeatureCache
from ldm.models.perturbation import Perturbation
from ldm.models.unet import UNet
from ldm.sampling.forward_process import Process
from samplers import Level, Prediction, Schedule


@dataclass(frozen=True)
class Branch:
    """A denoising network with the condition of each sample of the batch, and what is changed in it on purpose."""

    model: nn.Module
    condition: Condition
    perturbation: Perturbation | None = None
    process: Process | None = None  # what this network was trained for; None: what the sampler goes by


@dataclass(frozen=True)
class ClassifierBranch:
    """A noisy classifier with the class that each sample of the batch is to have."""

    model: nn.Module
    labels: Tensor  # (B,)
    schedule: Schedule | None = None  # that it was trained on; None: the sampler's


class Denoiser:
    """The `Evaluate` of the samplers over networks: the only place where sampling calls a network.

    A network of another schedule is shown x_t at its own time of the same log-SNR, scaled to its own alpha and sigma.
    What follows from the conditions alone is computed once, so a denoiser is good for one run with fixed weights. With
    `feature_cache` N > 1 only every Nth call of a network runs it whole, and the first with other branches than before;
    the others take from then the features of all but its highest resolution.
    The count `evaluations` grows by one a sample and branch, the cost in which samplers are compared.
    """

    def __init__(
        self,
        branches: Mapping[str, Branch | ClassifierBranch],
        process: Process,
        autocast: torch.dtype | None = None,
        feature_cache: int = 1,
    ) -> None:
        self.branches, self.process, self.autocast, self.feature_cache = (
            dict(branches),
            process,
            autocast,
            feature_cache,
        )
        self.evaluations = 0
        self._prepared: dict[tuple[str, ...], dict[str, Any]] = {}
        self._deep: dict[nn.Module, tuple[tuple[str, ...], int, FeatureCache]] = {}

    def __call__(self, x: Tensor, level: Level, names: Sequence[str]) -> Mapping[str, Prediction]:
        """Predictions for x (B, C, h, w) at `level` from the named branches.

        A classifier's prediction carries grad_x log p(y | x_t) as its `score_shift`. ValueError for an unknown branch.
        """
        unknown = [name for name in names if name not in self.branches]
        if unknown:
            raise ValueError(f"no branch {unknown[0]!r} here; there are {', '.join(self.branches)}")
        self.evaluations += len(names) * len(x)
        found: dict[str, Prediction] = {}
        together: dict[nn.Module, dict[str, Branch]] = {}
        for name in names:
            branch = self.branches[name]
            if isinstance(branch, ClassifierBranch):
                found[name] = Prediction(x, level, x, score_shift=self._gradient(branch, x, level))
            else:
                together.setdefault(branch.model, {})[name] = branch
        for model, group in together.items():
            for name, x0 in zip(group, self._denoised(model, group, x, level), strict=True):
                found[name] = Prediction(x, level, x0)
        return found

    def _denoised(self, model: nn.Module, group: Mapping[str, Branch], x: Tensor, level: Level) -> Sequence[Tensor]:
        names, branches = tuple(group), list(group.values())
        process = branches[0].process or self.process
        own, scale = self._own(process.schedule, level)
        count = len(branches)
        repeated = (x if scale == 1 else scale * x).repeat(count, 1, 1, 1)  # (count * B, C, h, w)
        net_input, c_noise = process.precondition(repeated, own.t, own.alpha, own.sigma)
        t = torch.full((len(net_input),), c_noise, device=x.device, dtype=x.dtype)
        changes = [
            (branch.perturbation, _only(place, count, x))
            for place, branch in enumerate(branches)
            if branch.perturbation is not None
        ]
        further: dict[str, Any] = {"perturbations": changes} if changes else {}
        if self.feature_cache > 1:
            further["deep"] = self._deep_of(model, names)
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            output = model(net_input, t, **self._conditions(model, names, branches), **further)
        return process.prediction.x0(output.to(x.dtype), repeated, own.alpha, own.sigma).chunk(count)

    def _conditions(self, model: nn.Module, names: tuple[str, ...], branches: Sequence[Branch]) -> dict[str, Any]:
        """The conditions of these branches as arguments of their network, the same at every step."""
        if names not in self._prepared:
            joined = Condition.cat([branch.condition for branch in branches])
            if isinstance(model, UNet):
                self._prepared[names] = {"prepared": model.prepare(joined.class_labels, joined.context)}
            else:
                self._prepared[names] = {"class_labels": joined.class_labels, "context": joined.context}
        return self._prepared[names]

    def _deep_of(self, model: nn.Module, names: tuple[str, ...]) -> FeatureCache:
        """The features to go by in this call, or an empty place for them where they are to be made anew."""
        before, calls, deep = self._deep.get(model, ((), 0, FeatureCache()))
        if before != names or calls == self.feature_cache:
            calls, deep = 0, FeatureCache()
        self._deep[model] = names, calls + 1, deep
        return deep

    def _gradient(self, branch: ClassifierBranch, x: Tensor, level: Level) -> Tensor:
        """grad_x log p(y | x_t), (B, C, h, w) (Dhariwal & Nichol 2021, section 4)."""
        own, scale = self._own(branch.schedule, level)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            t = torch.full((len(x),), own.t, device=x.device, dtype=x.dtype)
            with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
                logits = branch.model(leaf if scale == 1 else scale * leaf, t)  # (B, K)
            log_p = logits.to(x.dtype).log_softmax(-1).gather(-1, branch.labels[:, None])
            return torch.autograd.grad(log_p.sum(), leaf)[0]

    def _own(self, schedule: Schedule | None, level: Level) -> tuple[Level, float]:
        """The level of the same log-SNR on a network's own schedule, and the factor from x here to x there."""
        if schedule is None or schedule is self.process.schedule or schedule == self.process.schedule:
            return level, 1.0
        if math.isinf(level.log_snr):  # pure noise: the nearest that the network knows
            own = schedule.level(schedule.num_train_timesteps - 1)
            return own, math.hypot(own.alpha, own.sigma) / level.sigma
        own = schedule.level_of(level.log_snr)
        return own, own.sigma / level.sigma


def _only(place: int, count: int, x: Tensor) -> Tensor:
    """The samples of branch `place` among `count` joined ones: booleans (count * B,)."""
    mask = torch.zeros(count, len(x), dtype=torch.bool, device=x.device)
    mask[place] = True
    return mask.flatten()
