"""Lookup-free quantisation (Yu et al. 2023, arXiv:2310.05737, MAGVIT-v2): each channel becomes its sign, one bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoders.bottlenecks.base import BottleneckOutput, Quantizer, full_precision
from autoencoders.bottlenecks.vector_quantizer import code_use, straight_through
from autoencoders.distributed import over_processes

_GROUP = 8  # bits whose 2^8 joint probabilities are held for every vector of a batch


def entropy_penalty(vectors: Tensor, temperature: float, *, joint: bool = False) -> tuple[Tensor, Tensor]:
    """E[H(q(c | z))] and H(E[q(c | z)]) in nats for vectors (N, C): the penalty of section 3.1 is their difference.

    q(c | z) is the softmax over all codes c in {-1, 1}^C of -|z - c|^2 / T, in which the bits are independent, with
    the probability sigmoid(4 z / T) of +1. So the first term is a sum over bits, exactly. The second is computed in
    groups of 8 bits and summed: exact up to 8 channels, an upper bound beyond, since entropy is subadditive. With
    `joint` the mean q is that of the vectors of all processes.
    """
    logits = vectors * (4 / temperature)  # (N, C)
    plus, minus = F.logsigmoid(logits), F.logsigmoid(-logits)
    mean_entropy = -(plus.exp() * plus + minus.exp() * minus).sum(1).mean()
    entropy_of_mean, tiny = vectors.new_zeros(()), torch.finfo(vectors.dtype).tiny
    for first, second in zip(plus.split(_GROUP, 1), minus.split(_GROUP, 1), strict=True):
        width = first.shape[1]
        vectors_of_bits = torch.arange(2**width, device=vectors.device)
        bits = (vectors_of_bits >> torch.arange(width, device=vectors.device)[:, None] & 1).to(vectors)  # (G, 2^G)
        mean = (first @ bits + second @ (1 - bits)).exp().mean(0)  # (2^G,)
        mean = over_processes(mean) if joint else mean
        entropy_of_mean = entropy_of_mean - torch.special.xlogy(mean, mean.clamp(min=tiny)).sum()
    return mean_entropy, entropy_of_mean


class LookupFree(Quantizer):
    """Features (B, C, h, w) -> latents (B, C, h, w): the 2^C vectors of {-1, 1}^C, without a codebook in memory.

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
        channel = torch.arange(latents.shape[1], device=latents.device)[:, None, None]
        return ((latents > 0).long() << channel).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> the vectors (B, C, h, w), of -1 and 1."""
        channel = torch.arange(self.channels, device=indices.device)[:, None, None]
        return (indices[:, None] >> channel & 1).float() * 2 - 1

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        z = full_precision(features)
        quantised = self.decode(z)
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.permute(0, 2, 3, 1).flatten(0, 2)  # (N, C)
            mean_entropy, entropy_of_mean = entropy_penalty(vectors, self.entropy_temperature, joint=self.training)
        entropy = self.entropy_weight * (mean_entropy - entropy_of_mean)
        losses = {"commitment": self.beta * F.mse_loss(z, quantised), "entropy": entropy}
        use = code_use(self.indices(z.detach()), self.num_codes, everywhere=self.training)
        metrics = {**use, "batch_entropy": entropy_of_mean.detach()}
        return BottleneckOutput(straight_through(z, quantised), losses, metrics)
