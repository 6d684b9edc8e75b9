"""Optimisers: AdamW for channels_last weights, and Muon; the learning rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.training.config import TrainingConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the quintic whose slope at 0 is steepest


def scheduled_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then constant, or falling up to `max_train_steps`.

    The warm-up begins at peak / `lr_warmup_steps` and reaches the peak in its last step, so that no step is lost to a
    rate of 0; diffusers' begins at 0 and is one step later. After it the rates are those of
    `diffusers.optimization.get_scheduler` for the same name (hard restarts: Loshchilov and Hutter 2017). `inverse_sqrt`
    is the peak up to step `lr_reference_steps` and then falls as 1 / sqrt(step), with no end (Karras et al. 2024,
    eq. 67); the warm-up is laid over it.
    """
    peak, schedule, warmup = config.learning_rate, config.lr_scheduler, config.lr_warmup_steps
    if schedule == "inverse_sqrt":
        peak /= math.sqrt(max(step / config.lr_reference_steps, 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, config.max_train_steps - warmup))
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "polynomial":
        return (peak - config.lr_end) * (1 - progress) ** config.lr_power + config.lr_end
    if schedule == "cosine_with_restarts":
        progress = 1.0 if progress == 1 else config.lr_num_cycles * progress % 1
    if schedule in ("cosine", "cosine_with_restarts"):
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to the norm `limit`; returns the norm that they had. Those within it are not touched.

    As `torch.nn.utils.clip_grad_norm_`, bit for bit, which multiplies by 1 all the same: on a CPU half of its time. A
    GPU multiplies faster than it answers.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if trained and trained[0].device.type != "cpu":
        return nn.utils.clip_grad_norm_(trained, limit)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if not limit / (norm + 1e-6) >= 1:  # NaN too
        nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm


def make_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """AdamW in its fused form, or Muon; weight decay on matrices and kernels only, not on biases, norms and scalars.

    Each group has a `ratio`, its learning rate over `config.learning_rate`. Embeddings are never Muon's.
    """
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen: list[nn.Parameter] = []
    if config.optimizer == "muon":
        chosen = [p for p in trained if suits(p) and id(p) not in embeddings]
    ids = {id(p) for p in chosen}
    groups: list[dict[str, Any]] = [
        {"params": chosen, "muon": True, "ratio": config.muon_learning_rate / config.learning_rate},
        {"params": [p for p in trained if p.ndim >= 2 and id(p) not in ids], "muon": False, "ratio": 1.0},
        {"params": [p for p in trained if p.ndim < 2], "muon": False, "ratio": 1.0, "weight_decay": 0.0},
    ]
    make = Muon if config.optimizer == "muon" else AdamW
    return make(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        fused=trained[0].device.type in ("cpu", "cuda"),
    )


class AdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov and Hutter 2019), faster and right for kernels in channels_last; the same update.

    On a CPU the fused step copies every tensor that is not contiguous, which takes longer than the update itself.
    Permuted to (out, h, w, in) such a kernel is contiguous. The fused step also goes through the memory of a weight and
    of its gradient in parallel, whatever their layouts (torch 2.15); here they have the same.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor], *others: list[Tensor]) -> bool:
        """`others`: gradients, both moments, the moments' maxima, and the steps, which are numbers."""
        has_complex = super()._init_group(group, params, *others)  # type: ignore[misc]
        if group["fused"] and params and params[0].device.type == "cpu":
            permuted = [_is_channels_last(parameter) for parameter in params]
            for tensors in (params, *others[:-1]):  # to (out, h, w, in), of the same memory
                tensors[:] = [t.permute(0, 2, 3, 1) if p else t for t, p in zip(tensors, permuted, strict=False)]
            others[0][:] = [gradient.contiguous() for gradient in others[0]]  # themselves, where they are
        return has_complex


def _is_channels_last(parameter: Tensor) -> bool:
    if parameter.ndim != 4 or parameter.is_contiguous():
        return False
    return parameter.is_contiguous(memory_format=torch.channels_last)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """U V^T, nearly, of matrices U S V^T (B, m, n) with m <= n: singular values are brought to about 0.7 to 1.2.

    Newton-Schulz iteration, which needs products only. Every iterate is P X with P a polynomial in A = X X^T, so all
    of it happens on the small (m, m) side: for n = 9 m a third of the arithmetic of iterating on X itself.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    square, product = x @ x.mT, identity  # (B, m, m): A of this iterate, and P
    for step in range(steps):
        factor = torch.baddbmm(b * square, square, square, alpha=c) + a * identity  # (B, m, m)
        product = factor @ product if step else factor
        if step < steps - 1:
            square = factor @ square @ factor  # they commute
    return product @ x


def suits(parameter: Tensor) -> bool:
    """Whether a parameter is a kernel or matrix with at least 8 rows and columns, not the last layer of a decoder."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 8


class Muon(AdamW):
    """AdamW whose groups with `muon=True` are stepped by orthogonalised Nesterov momentum instead.

    A kernel (out, in, h, w) counts as the matrix (out, in * h * w); its step has the length lr * sqrt(max(1, rows /
    columns)) a singular value. torch's own `Muon` takes two-dimensional parameters only.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient stay."""
        assert closure is None, "the training loop has none"
        all_groups, muon_groups = self.param_groups, [group for group in self.param_groups if group["muon"]]
        self.param_groups = [group for group in all_groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = all_groups
        for group in muon_groups:
            self._muon_step([p for p in group["params"] if p.grad is not None], group["lr"])

    def _muon_step(self, parameters: list[Tensor], learning_rate: float) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor, bool]]] = {}
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # unused; AdamW expects one of every state
            state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
            update = parameter.grad.lerp(state["momentum"], self.momentum).flatten(1)  # (rows, columns)
            tall = update.shape[0] > update.shape[1]
            update = update.mT if tall else update
            by_shape.setdefault(tuple(update.shape), []).append((parameter, update, tall))
        for members in by_shape.values():  # matrices of one shape together
            steps = orthogonalized(torch.stack([update for _, update, _ in members]))
            for (parameter, _, tall), step in zip(members, steps, strict=True):
                rows, columns = parameter.shape[0], parameter[0].numel()
                step = (step.mT if tall else step).reshape(parameter.shape)
                parameter.add_(step, alpha=-learning_rate * max(1.0, rows / columns) ** 0.5)
