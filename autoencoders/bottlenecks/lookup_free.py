"""Lookup-free quantisation (Yu et al. 2023, arXiv:2310.05737, MAGVIT-v2): each channel becomes its sign, one bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoders.bottlenecks.base import BottleneckOutput, Quantizer, full_precision
from autoencoders.bottlenecks.vector_quantizer import code_use, straight_through
from autoencoders.checks import check_number
from autoencoders.distributed import over_processes

MAX_BITS = 22
_GROUP = 8  # bits whose 2^8 joint probabilities are held for every vector of a batch


@dataclass(frozen=True)
class LookupFreeConfig:
    """Settings of the bottleneck "lfq"."""

    entropy_weight: float = 0.1
    """lfq: weight of the entropy penalty, beside the commitment term."""
    entropy_temperature: float = 1.0
    """lfq: how soft the choice of a code is in the entropy penalty; small values see only latents close to 0."""

    def __post_init__(self) -> None:
        check_number("entropy_weight", self.entropy_weight, 0, 1e6)
        check_number("entropy_temperature", self.entropy_temperature, 0, 1e3, above=True)


def entropy_penalty(vectors: Tensor, temperature: float, *, joint: bool = False) -> tuple[Tensor, Tensor]:
    """E[H(q(c | z))] and H(E[q(c | z)]) in nats for vectors (N, C): the penalty of section 3.1 is their difference.

    q(c | z) is the softmax over all codes c in {-1, 1}^C of -|z - c|^2 / T, in which the bits are independent, with
    the probability sigmoid(4 z / T) of +1. So the first term is a sum over bits, exactly. The second is computed in
    groups of 8 bits and summed: exact up to 8 channels, an upper bound beyond, since entropy is subadditive. With
    `joint` the mean q is that of the vectors of all processes.
    """
    logits = vectors * (4 / temperature)  # (N, C)
    plus, minus = F.logsigmoid(logits), F.logsigmoid(-logits)
    of_each = -(plus.exp() * plus + minus.exp() * minus).sum(1).mean()
    of_mean = vectors.new_zeros(())
    for first, second in zip(plus.split(_GROUP, 1), minus.split(_GROUP, 1), strict=True):
        width = first.shape[1]
        codes = torch.arange(2**width, device=vectors.device)
        bits = (codes >> torch.arange(width, device=vectors.device)[:, None] & 1).to(vectors)  # (G, 2^G)
        mean = (first @ bits + second @ (1 - bits)).exp().mean(0)  # (2^G,)
        mean = over_processes(mean) if joint else mean
        of_mean = of_mean - torch.special.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()
    return of_each, of_mean


class LookupFree(Quantizer):
    """Features (B, C, h, w) -> latents (B, C, h, w): 2^C codes in {-1, 1}^C, and no table of them.

    The latents are the features themselves; `decode` takes their signs, and 0 counts as negative.
    """

    def __init__(self, channels: int, entropy_weight: float, entropy_temperature: float, beta: float) -> None:
        super().__init__()
        self.channels, self.num_codes = channels, 2**channels
        self.entropy_weight, self.entropy_temperature, self.beta = entropy_weight, entropy_temperature, beta

    def decode(self, latents: Tensor) -> Tensor:
        return (latents > 0).to(latents.dtype) * 2 - 1

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> indices (B, h, w): channel k is bit k (section 3.1 of the paper)."""
        place = torch.arange(latents.shape[1], device=latents.device)[:, None, None]
        return ((latents > 0).long() << place).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> the codes (B, C, h, w), of -1 and 1."""
        place = torch.arange(self.channels, device=indices.device)[:, None, None]
        return (indices[:, None] >> place & 1).float() * 2 - 1

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        z = full_precision(features)
        codes = self.decode(z)
        with torch.autocast(z.device.type, enabled=False):
            of_each, of_mean = entropy_penalty(
                z.permute(0, 2, 3, 1).flatten(0, 2), self.entropy_temperature, joint=self.training
            )
        losses = {
            "commitment": self.beta * F.mse_loss(z, codes),
            "entropy": self.entropy_weight * (of_each - of_mean),
        }
        metrics = {
            **code_use(self.indices(z.detach()), self.num_codes, everywhere=self.training),
            "batch_entropy": of_mean.detach(),
        }
        return BottleneckOutput(straight_through(z, codes), losses, metrics)
