"""The spherical bottleneck: a von Mises-Fisher posterior and a uniform prior.

Davidson et al. 2018, arXiv:1804.00891; Xu and Durrett 2018, arXiv:1808.10805 (concentration as a setting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding, full_precision
from autoencoders.distributed import full_shape, normal_rows, own_rows, standard_normal


def log_bessel(order: float, x: float) -> float:
    """log I_order(x) of the modified Bessel function of the first kind, for order >= 0 and 0 < x <= 1e4.

    The power series (Abramowitz and Stegun 9.6.10), all of whose terms are positive: no digits cancel.
    """
    count = int(x) + 200  # the largest term is near m = x / 2
    m = torch.arange(count, dtype=torch.float64, device="cpu")  # even where models are made on "meta"
    terms = (2 * m + order) * math.log(x / 2) - torch.lgamma(m + 1) - torch.lgamma(m + order + 1)
    return float(terms.logsumexp(0))


def mean_resultant_length(kappa: float, dim: int) -> float:
    """Length of the mean of vMF vectors in R^dim: I_{d/2}(kappa) / I_{d/2-1}(kappa) (Mardia and Jupp 2000, ch. 9)."""
    return math.exp(log_bessel(dim / 2, kappa) - log_bessel(dim / 2 - 1, kappa))


def vmf_kl(kappa: float, dim: int) -> float:
    """KL(vMF(mu, kappa) || uniform on the unit sphere of R^dim) in nats (derived in Davidson et al.); mu is free.

    kappa A(kappa) + log C(kappa) + log(area), C = kappa^v / ((2 pi)^(v+1) I_v(kappa)), v = d/2 - 1, and
    area = 2 pi^(d/2) / Gamma(d/2).
    """
    v = dim / 2 - 1
    log_c = v * math.log(kappa) - (v + 1) * math.log(2 * math.pi) - log_bessel(v, kappa)
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    return kappa * mean_resultant_length(kappa, dim) + log_c + log_area


@torch.no_grad()
def sample_cosine(like: Tensor, dim: int, kappa: float, generator: torch.Generator) -> Tensor:
    """w = <mu, z>, shaped like `like`, for z from vMF(mu, kappa) in R^dim (Ulrich 1984, as corrected by Wood 1994).

    Rejection: a Beta((d-1)/2, (d-1)/2) proposal, which is (1 + t) / 2 for a coordinate t of a uniform unit vector.
    Every round proposes for all positions, so the result depends on the generator and the shape alone.
    """
    b = (dim - 1) / (2 * kappa + math.sqrt(4 * kappa**2 + (dim - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (dim - 1) * math.log(4 * b / (1 + b) ** 2)  # 1 - x0^2, without its cancellation
    device = generator.device
    kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    shape = full_shape(like.shape, generator)
    w = torch.empty(shape, dtype=kind, device=device)
    waiting = torch.ones(shape, dtype=torch.bool, device=device)
    while bool(waiting.any()):
        normal = torch.randn((*shape, dim), generator=generator, dtype=kind, device=device)
        t = normal[..., 0] / normal.norm(dim=-1)
        beta = (1 + t) / 2
        proposal = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        u = torch.rand(shape, generator=generator, dtype=kind, device=device)
        accepted = kappa * proposal + (dim - 1) * torch.log1p(-x0 * proposal) - c >= u.log()
        w = torch.where(waiting & accepted, proposal, w)
        waiting &= ~accepted
    return own_rows(w, len(like), generator).to(like)


def sample_vmf(mu: Tensor, kappa: float, generator: torch.Generator) -> Tensor:
    """Unit vectors z (B, C, h, w) from vMF(mu, kappa) for unit vectors mu (B, C, h, w); C is the dimension.

    z = w mu + sqrt(1 - w^2) v, with v uniform in the directions orthogonal to mu: noise minus its part along mu,
    normalised. With kappa fixed, w does not depend on mu, so the gradient of z with respect to mu, for w and the noise
    held, is the reparameterised one, exactly: the acceptance step adds no term to it.
    """
    w = sample_cosine(mu[:, :1], mu.shape[1], kappa, generator)  # (B, 1, h, w)
    noise = standard_normal(mu, generator)
    v = F.normalize(noise - (noise * mu).sum(1, keepdim=True) * mu, dim=1)
    return w * mu + (1 - w.square()).clamp(min=0).sqrt() * v


class VonMisesFisher(Bottleneck):
    """Features (B, C, h, w) -> latents (B, C, h, w) of norm 1 over the channels: one sphere S^(C-1) at each position.

    A sphere a position, rather than one for the whole image, so that images of every size can be encoded. The
    concentration is a setting, the same at all positions: the KL is then a constant and cannot collapse. `encode` gives
    the mean direction, without a standard deviation; `decode` normalises the latents that diffusion generates.
    """

    def __init__(self, channels: int, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa
        self.kl = vmf_kl(kappa, channels)  # nats a position
        self.length = mean_resultant_length(kappa, channels)

    def encode(self, features: Tensor) -> Encoding:
        return Encoding(F.normalize(full_precision(features), dim=1))

    def decode(self, latents: Tensor) -> Tensor:
        return F.normalize(latents, dim=1)

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        # uniform on the sphere of each position
        return F.normalize(normal_rows(shape, generators), dim=1)

    def weighted_sample(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """z from the posterior, and log p(z) - log q(z | x) in nats, (B,) in float64, p uniform on the spheres.

        At a position, log q = kappa <mu, z> + log C and log p = -log(area), and the KL is kappa A + log C + log(area).
        """
        mu = self.encode(features).mean
        z = sample_vmf(mu, self.kappa, generator)
        excess = self.kappa * ((mu * z).sum(1).cpu().double() - self.length)  # (B, h, w)
        return z, -(excess + self.kl).flatten(1).sum(1)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        mu = self.encode(features).mean
        z = mu if generator is None else sample_vmf(mu, self.kappa, generator)
        positions = mu.shape[2] * mu.shape[3]
        return BottleneckOutput(z, losses={"kl": mu.new_tensor(self.kl * positions)})
