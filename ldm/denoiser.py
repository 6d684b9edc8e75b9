"""From networks to predictions: each branch is (model, condition); branches of one model share one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.conditioning import Condition
from samplers import Level, Prediction, Target, x0_from_output


@dataclass(frozen=True)
class Branch:
    """A denoising network with the condition of each sample of the batch."""

    model: nn.Module
    condition: Condition


@dataclass(frozen=True)
class ClassifierBranch:
    """A noisy classifier with the class that each sample of the batch is to have."""

    model: nn.Module
    labels: Tensor  # (B,)


class Denoiser:
    """The `Evaluate` of the samplers over networks: the only place where sampling calls a network.

    The count `evaluations` grows by one a sample and branch, the cost in which samplers are compared.
    """

    def __init__(
        self,
        branches: Mapping[str, Branch | ClassifierBranch],
        prediction_type: Target,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.branches, self.prediction_type, self.autocast = dict(branches), prediction_type, autocast
        self.evaluations = 0

    def __call__(self, x: Tensor, level: Level, names: Sequence[str]) -> Mapping[str, Prediction]:
        """Predictions for x (B, C, h, w) at `level` from the named branches.

        A classifier's prediction carries grad_x log p(y | x_t) as its `shift`. ValueError for an unknown branch.
        """
        unknown = [name for name in names if name not in self.branches]
        if unknown:
            raise ValueError(f"no branch {unknown[0]!r} here; there are {', '.join(self.branches)}")
        self.evaluations += len(names) * len(x)
        found: dict[str, Prediction] = {}
        together: dict[nn.Module, list[str]] = {}
        for name in names:
            branch = self.branches[name]
            if isinstance(branch, ClassifierBranch):
                found[name] = Prediction(x, level, x, shift=self._gradient(branch, x, level))
            else:
                together.setdefault(branch.model, []).append(name)
        for model, group in together.items():
            for name, x0 in zip(group, self._denoised(model, group, x, level), strict=True):
                found[name] = Prediction(x, level, x0)
        return found

    def _denoised(self, model: nn.Module, names: Sequence[str], x: Tensor, level: Level) -> Sequence[Tensor]:
        conditions = [branch.condition for name in names if isinstance(branch := self.branches[name], Branch)]
        joined = Condition.cat(conditions)
        repeated = x.repeat(len(names), 1, 1, 1)  # (names * B, C, h, w)
        t = torch.full((len(repeated),), level.t, device=x.device, dtype=x.dtype)
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            output = model(repeated, t, class_labels=joined.class_labels, context=joined.context)
        x0 = x0_from_output(self.prediction_type, output.to(x.dtype), repeated, level.alpha, level.sigma)
        return x0.chunk(len(names))

    def _gradient(self, branch: ClassifierBranch, x: Tensor, level: Level) -> Tensor:
        """grad_x log p(y | x_t), (B, C, h, w) (Dhariwal & Nichol 2021, section 4)."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            t = torch.full((len(x),), level.t, device=x.device, dtype=x.dtype)
            with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
                logits = branch.model(leaf, t)  # (B, K)
            log_p = logits.to(x.dtype).log_softmax(-1).gather(-1, branch.labels[:, None])
            return torch.autograd.grad(log_p.sum(), leaf)[0]
