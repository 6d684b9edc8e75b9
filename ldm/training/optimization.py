"""Optimiser and learning rate, the latter a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from ldm.training.adamw import AdamW
from ldm.training.config import TrainingConfig
from ldm.training.muon import Muon, suits

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt"]


def scheduled_rate(step: int, config: TrainingConfig) -> float:
    """The rate of step `step` (from 0) by the settings."""
    return learning_rate(
        step,
        config.learning_rate,
        config.lr_scheduler,
        config.lr_warmup_steps,
        config.max_train_steps,
        config.lr_reference_steps,
    )


def learning_rate(step: int, peak: float, schedule: Schedule, warmup: int, total: int, reference: int = 1) -> float:
    """The rate of step `step` (from 0): linear warm-up over `warmup` steps, then constant, or down to 0 at `total`.

    `inverse_sqrt` is the peak up to step `reference` and then falls as 1 / sqrt(step), with no end (Karras et al. 2024,
    eq. 67); the warm-up is laid over it.
    """
    if schedule == "inverse_sqrt":
        peak /= math.sqrt(max(step / reference, 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to the norm `limit`; returns the norm that they had. Those within it are not touched.

    As `torch.nn.utils.clip_grad_norm_`, bit for bit, which multiplies by 1 all the same: on a CPU half of its time. A
    GPU multiplies sooner than it tells.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    if held and held[0].device.type != "cpu":
        return nn.utils.clip_grad_norm_(held, limit)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    if not limit / (norm + 1e-6) >= 1:  # NaN too
        nn.utils.clip_grads_with_norm_(held, limit, norm)
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
