"""The bottleneck of the discrete VAE: a relaxed categorical posterior.

Jang et al. 2017, arXiv:1611.01144; Ramesh et al. 2021 (DALL-E), arXiv:2102.12092, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Quantizer, full_precision
from autoencoders.bottlenecks.vector_quantizer import code_use, straight_through
from autoencoders.distributed import random_rows

_CODE_SPREAD = 2.0  # of new codes: wide enough that the first choices are not all chance


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Weights (B, K, h, w) that sum to 1 over K: softmax((logits + g) / tau), g standard Gumbel (Jang et al., eq. 2).

    The largest weight is at code k with the probability softmax(logits)_k at every temperature; for tau -> 0 it is 1.
    """
    u = random_rows(torch.rand, logits.shape, generator, dtype=logits.dtype).to(logits.device)
    u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps / 2)  # rand may give 0, and log 1 is 0
    return torch.softmax((logits - torch.log(-u.log())) / temperature, dim=1)


def uniform_kl(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) = log K - H in nats, summed over the positions of logits (B, K, h, w): (B,)."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).flatten(1).sum(1)


class Gumbel(Quantizer):
    """Features (B, C, h, w) -> K logits a position -> a mixture of K vectors, (B, C, h, w).

    The latents are the features, which `proj` maps to logits: C channels, which diffusion can learn, in place of K.
    `decode` takes the vector of the largest logit. In training the mixture is drawn, at the temperature of the step, so
    that a resumed run needs no state.
    """

    def __init__(
        self, num_codes: int, channels: int, temperature_at: Callable[[int], float], straight_through: bool = False
    ) -> None:
        """`temperature_at` is the temperature as a function of the training step, counted from 0."""
        super().__init__()
        self.num_codes, self.temperature_at, self.one_hot = num_codes, temperature_at, straight_through
        self.step = 0
        self.proj = nn.Conv2d(channels, num_codes, 1)
        self.embedding = nn.Embedding(num_codes, channels)
        # At first the logits are -|z - e_k|^2 / 2 up to a constant, so each code is the most probable somewhere. With
        # random rows and no such bias, only those on the convex hull could ever be, a few of 256 in 4 channels.
        vectors = nn.init.normal_(self.embedding.weight, std=_CODE_SPREAD).detach()
        self.proj.weight.data.copy_(vectors[:, :, None, None])
        assert self.proj.bias is not None
        self.proj.bias.data.copy_(-0.5 * vectors.square().sum(1))

    def logits(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, K, h, w), in float32 at least."""
        return full_precision(self.proj(latents.to(self.proj.weight.dtype)))

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the indices (B, h, w) of their most probable codes."""
        return self.logits(latents).argmax(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> vectors (B, C, h, w)."""
        return self.embedding(indices).permute(0, 3, 1, 2)

    def set_step(self, step: int) -> None:
        self.step = step

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        # all codes are equally probable
        rows = [torch.randint(self.num_codes, tuple(shape[1:]), generator=generator) for generator in generators]
        return self.lookup(torch.stack(rows).to(self.embedding.weight.device))

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        logits = self.logits(features)  # (B, K, h, w)
        index = logits.argmax(1)  # (B, h, w)
        tau = self.temperature_at(self.step)
        if generator is None:
            z = self.lookup(index)
        else:
            weights = gumbel_softmax(logits, tau, generator)
            if self.one_hot:
                chosen = F.one_hot(weights.argmax(1), self.num_codes).permute(0, 3, 1, 2).to(weights.dtype)
                weights = straight_through(weights, chosen)
            z = torch.einsum("bkhw,kc->bchw", weights, self.embedding.weight.to(weights.dtype))
        metrics = {**code_use(index, self.num_codes, everywhere=self.training), "temperature": logits.new_tensor(tau)}
        return BottleneckOutput(z, {"kl": uniform_kl(logits).mean()}, metrics)
