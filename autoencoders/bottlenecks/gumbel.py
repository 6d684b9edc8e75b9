"""The bottleneck of the discrete VAE: a relaxed categorical posterior.

Jang et al. 2017, arXiv:1611.01144; Ramesh et al. 2021 (DALL-E), arXiv:2102.12092, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Quantizer, full_precision
from autoencoders.bottlenecks.vector_quantizer import code_use, straight_through
from autoencoders.checks import check_bool, check_int, check_number
from autoencoders.posterior_noise import random_rows

_CODE_SPREAD = 2.0  # of new codes: wide enough that the first choices are not all chance


@dataclass(frozen=True)
class GumbelConfig:
    """Settings of the bottleneck "gumbel"."""

    temperature: float = 1.0
    """gumbel: temperature of the relaxation at the first training step."""
    temperature_end: float = 0.0625
    """gumbel: temperature from step temperature_steps on; the way there is a half cosine."""
    temperature_steps: int = 10_000
    """gumbel: training steps over which the temperature is annealed; 0: it is temperature_end from the start."""
    straight_through: bool = False
    """gumbel: give the decoder one code, with the gradient of the mixture (Jang et al., section 2.2)."""

    def __post_init__(self) -> None:
        for name in ("temperature", "temperature_end"):
            check_number(name, getattr(self, name), 0, 1e3, above=True)
        check_int("temperature_steps", self.temperature_steps, 0, 2**40)
        check_bool("straight_through", self.straight_through)

    def temperature_at(self, step: int) -> float:
        """The temperature at a training step, counted from 0: a half cosine (Ramesh et al., appendix A.2)."""
        done = min(1.0, step / self.temperature_steps) if self.temperature_steps else 1.0
        return self.temperature_end + (self.temperature - self.temperature_end) * (1 + math.cos(math.pi * done)) / 2


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Weights (B, K, h, w) that sum to 1 over K: softmax((logits + g) / tau), g standard Gumbel (Jang et al., eq. 2).

    The largest weight is at code k with the probability softmax(logits)_k at every temperature; for tau -> 0 it is 1.
    """
    u = random_rows(torch.rand, logits.shape, generator, dtype=logits.dtype).to(logits.device)
    u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps / 2)  # rand may give 0, and log 1 is 0
    return torch.softmax((logits - torch.log(-u.log())) / temperature, dim=1)


def uniform_kl(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) = log K - H in nats, summed over the places of logits (B, K, h, w): (B,)."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).flatten(1).sum(1)


class Gumbel(Quantizer):
    """Features (B, C, h, w) -> K logits a place -> a mixture of K codes of C channels, for the decoder.

    The latents are the features, of which `proj` makes the logits: C channels, which diffusion can learn, where logits
    would be K. `decode` takes the code of the largest logit. In training the mixture is drawn; its temperature is a
    function of `step`, which the training sets, so that nothing must be remembered to resume.
    """

    def __init__(self, num_codes: int, channels: int, config: GumbelConfig) -> None:
        super().__init__()
        self.num_codes, self.config = num_codes, config
        self.step = 0
        self.proj = nn.Conv2d(channels, num_codes, 1)
        self.embedding = nn.Embedding(num_codes, channels)
        # At first the logits are -|z - e_k|^2 / 2 up to a constant, so each code is the most probable somewhere. With
        # rows at random and no such bias, only those on the hull of all could ever be, a few of 256 in 4 channels.
        codes = nn.init.normal_(self.embedding.weight, std=_CODE_SPREAD).detach()
        self.proj.weight.data.copy_(codes[:, :, None, None])
        assert self.proj.bias is not None
        self.proj.bias.data.copy_(-0.5 * codes.square().sum(1))

    def logits(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, K, h, w), in float32 at least."""
        return full_precision(self.proj(latents.to(self.proj.weight.dtype)))

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the indices (B, h, w) of their most probable codes."""
        return self.logits(latents).argmax(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> codes (B, C, h, w)."""
        return self.embedding(indices).permute(0, 3, 1, 2)

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """From the prior, all codes equally probable: the decoder's input (B, *shape), row i by generator i."""
        index = torch.stack([torch.randint(self.num_codes, tuple(shape[1:]), generator=each) for each in generators])
        return self.lookup(index.to(self.embedding.weight.device))

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        logits = self.logits(features)  # (B, K, h, w)
        index = logits.argmax(1)  # (B, h, w)
        tau = self.config.temperature_at(self.step)
        if generator is None:
            z = self.lookup(index)
        else:
            weights = gumbel_softmax(logits, tau, generator)
            if self.config.straight_through:
                chosen = F.one_hot(weights.argmax(1), self.num_codes).permute(0, 3, 1, 2).to(weights.dtype)
                weights = straight_through(weights, chosen)
            z = torch.einsum("bkhw,kc->bchw", weights, self.embedding.weight.to(weights.dtype))
        metrics = {**code_use(index, self.num_codes, everywhere=self.training), "temperature": logits.new_tensor(tau)}
        return BottleneckOutput(z, {"kl": uniform_kl(logits).mean()}, metrics)
