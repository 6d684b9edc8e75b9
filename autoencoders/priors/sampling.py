"""Drawing codes: temperature, top-k, top-p, classifier-free guidance, one random stream a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoders.checks import check_int, check_number
from autoencoders.priors.base import CodePrior, Decoder, PriorCondition


@dataclass(frozen=True)
class CodeSampling:
    """How codes are drawn from a prior."""

    temperature: float = 1.0
    """Codes: logits are divided by it; below 1 the likely codes are taken more often."""
    top_k: int = 0
    """Codes: only the k most likely are drawn; 0: all."""
    top_p: float = 1.0
    """Codes: only the likeliest, as many as together have this probability, are drawn (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 1e3, above=True)
        check_int("top_k", self.top_k, 0, 2**31)
        check_number("top_p", self.top_p, 0, 1, above=True)


def probabilities(logits: Tensor, sampling: CodeSampling) -> Tensor:
    """Logits (B, K) -> the law (B, K) that codes are drawn from, float64: temperature, then top-k, then top-p.

    Of codes that are equally likely the one with the smaller number counts as the likelier, so exactly k are kept.
    """
    probs = (logits.double() / sampling.temperature).softmax(-1)
    if not sampling.top_k and sampling.top_p == 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    if sampling.top_p < 1:  # a code stays while those before it fall short of p
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, ordered)


def sample_indices(probs: Tensor, uniform: Tensor) -> Tensor:
    """The codes (B,) where the cumulated law (B, K) passes numbers (B,) in [0, 1); never one of probability 0."""
    cumulated = probs.cumsum(-1)
    cumulated = cumulated / cumulated[:, -1:]
    found = torch.searchsorted(cumulated, uniform[:, None].to(cumulated).contiguous(), right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)  # of positive probability
    return torch.minimum(found, last)


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
    """Draw one map of codes a generator, (B, h, w) int64.

    Map i depends on its generator and its condition alone; it draws N numbers from it. `null` is the condition of the
    unconditional branch, which costs nothing where guidance_scale is 1, as the conditional one where it is 0. The
    prior must be in evaluation mode.
    """
    sampling, batch = sampling or CodeSampling(), len(generators)
    if prior.training:
        raise ValueError("sampling: the prior is in training mode; call eval() first")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale}")
    if guidance_scale != 1 and null is None:
        raise ValueError(f"guidance_scale {guidance_scale}: guidance needs the null condition")
    grid, device = prior.grid, next(prior.parameters()).device
    uniform = torch.stack(
        [torch.rand(grid.length, generator=each, dtype=torch.float64, device=each.device).cpu() for each in generators]
    )  # (B, N)
    exact = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    uniform = uniform.to(exact)
    branches: dict[str, Decoder] = {}
    if guidance_scale != 0:
        branches["cond"] = prior.decoder(condition, batch)
    if guidance_scale != 1 and null is not None:
        branches["null"] = prior.decoder(null, batch)
    codes = torch.zeros(batch, grid.height, grid.width, dtype=torch.int64, device=device)
    for n in range(grid.length):
        found = {name: decode(codes, n).to(exact).double() for name, decode in branches.items()}  # (B, K) each
        if len(found) == 2:
            logits = guided(found["cond"], found["null"], guidance_scale)
        else:
            (logits,) = found.values()
        row, column = divmod(n, grid.width)
        codes[:, row, column] = sample_indices(probabilities(logits, sampling), uniform[:, n]).to(device)
    return codes
