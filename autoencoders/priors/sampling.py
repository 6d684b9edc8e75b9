"""Sampling of indices: temperature, top-k, top-p, classifier-free guidance, one random stream a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autoencoders.priors.base import CodePrior, Decoder, PriorCondition
from autoencoders.priors.config import CodeSampling


def probabilities(logits: Tensor, sampling: CodeSampling) -> Tensor:
    """Logits (B, K) -> the distribution (B, K) of the index, float64: temperature, then top-k, then top-p.

    Of equally likely indices the smaller counts as the likelier, so exactly k remain.
    """
    probs = (logits.double() / sampling.temperature).softmax(-1)
    if not sampling.top_k and sampling.top_p == 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    if sampling.top_p < 1:  # an index remains while those before it sum to less than p
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, ordered)


def sample_indices(probs: Tensor, uniform: Tensor) -> Tensor:
    """The indices (B,) where the cumulative distribution of probs (B, K) exceeds numbers (B,) in [0, 1).

    Never one of probability 0.
    """
    cumulative = probs.cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    indices = torch.searchsorted(cumulative, uniform[:, None].to(cumulative).contiguous(), right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)  # of positive probability
    return torch.minimum(indices, last)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale * (conditional - unconditional), on logits as in Muse and Parti."""
    return unconditional + scale * (conditional - unconditional)


@torch.no_grad()
def sample_codes(
    prior: CodePrior,
    condition: PriorCondition,
    generators: Sequence[torch.Generator],
    sampling: CodeSampling | None = None,
    *,
    null: PriorCondition | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Draw one map of indices a generator, (B, h, w) int64.

    Map i depends on its generator and its condition alone, and takes N numbers from it. `null` is the condition of the
    unconditional branch, which costs nothing where guidance_scale is 1, as the conditional one where it is 0. The
    prior must be in evaluation mode. `FloatingPointError` where its logits are not finite.
    """
    sampling, batch = sampling or CodeSampling(), len(generators)
    if prior.training:
        raise ValueError("sampling: the prior is in training mode; call eval() first")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale}")
    if guidance_scale != 1 and null is None:
        raise ValueError(f"guidance_scale {guidance_scale}: guidance needs the null condition")
    grid, device = prior.grid, next(prior.parameters()).device
    rows = [torch.rand(grid.length, generator=g, dtype=torch.float64, device=g.device).cpu() for g in generators]
    exact = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    uniform = torch.stack(rows).to(exact)  # (B, N)
    branches: dict[str, Decoder] = {}
    if guidance_scale != 0:
        branches["cond"] = prior.decoder(condition, batch)
    if guidance_scale != 1 and null is not None:
        branches["null"] = prior.decoder(null, batch)
    first_bad = torch.full((), grid.length, device=exact)  # position of logits that are not finite
    codes = torch.zeros(batch, grid.height, grid.width, dtype=torch.int64, device=device)
    for n in range(grid.length):
        outputs = {name: decode(codes, n).to(exact).double() for name, decode in branches.items()}  # (B, K) each
        if len(outputs) == 2:
            logits = guided(outputs["cond"], outputs["null"], guidance_scale)
        else:
            (logits,) = outputs.values()
        first_bad = torch.where(logits.isfinite().all(), first_bad, first_bad.clamp(max=n))
        row, column = divmod(n, grid.width)
        codes[:, row, column] = sample_indices(probabilities(logits, sampling), uniform[:, n]).to(device)
    if first_bad < grid.length:
        scale = f", guided by scale {guidance_scale:g}," if len(branches) == 2 else ""
        raise FloatingPointError(f"the logits of code {int(first_bad) + 1} of {grid.length}{scale} are not finite")
    return codes
