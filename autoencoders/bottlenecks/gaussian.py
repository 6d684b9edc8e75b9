"""The variational bottleneck: a diagonal Gaussian posterior (Kingma and Welling 2014, arXiv:1312.6114)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding, full_precision
from autoencoders.distributed import normal_rows, standard_normal

LOGVAR_RANGE = (-30.0, 20.0)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over all but the first dimension: (B,).

    Kingma and Welling, appendix B: 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2).
    """
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar).flatten(1).sum(1)


class Gaussian(Bottleneck):
    """Features (B, 2 C, h, w) hold mean and log-variance; the latents are (B, C, h, w)."""

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, the latter clamped to [-30, 20]."""
        mean, logvar = full_precision(features).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def encode(self, features: Tensor) -> Encoding:
        mean, logvar = self.posterior(features)
        return Encoding(mean, torch.exp(0.5 * logvar))

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        return normal_rows(shape, generators)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        mean, logvar = self.posterior(features)
        # Equation 10 of the paper, the reparameterisation: z = mu + sigma * eps
        z = mean if generator is None else mean + torch.exp(0.5 * logvar) * standard_normal(mean, generator)
        return BottleneckOutput(z, losses={"kl": gaussian_kl(mean, logvar).mean()})
