"""The batch-normalised variational bottleneck, BN-VAE (Zhu et al. 2020, arXiv:2004.12585): its KL cannot vanish."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoencoders.bottlenecks.gaussian import Gaussian
from autoencoders.distributed import joint_moments


class BatchNormGaussian(Gaussian):
    """`Gaussian`, with a batch norm on the mean whose scale gamma is fixed and whose shift beta is learnt.

    Features (B, 2 C, h, w), latents (B, C, h, w). Over a training batch each channel of the mean has the standard
    deviation gamma and the mean beta, so the KL in nats, averaged over the batch, is at least
    C h w (gamma^2 + beta^2) / 2 (section 3 of the paper); that batch is the one of all processes. Evaluation uses
    running statistics. They are needed to encode at all, so they are parameters, without gradient: buffers would not
    get into a model folder.
    """

    def __init__(self, channels: int, mean_scale: float, *, momentum: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__()
        self.mean_scale, self.momentum, self.eps = mean_scale, momentum, eps
        self.shift = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        raw, logvar = super().posterior(features)  # (B, C, h, w) each
        if self.training:
            mean, var = joint_moments(raw)
            for running, now in ((self.running_mean, mean), (self.running_var, var)):
                running.data.lerp_(now.detach().to(running.dtype), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        gain = self.mean_scale * torch.rsqrt(var + self.eps)
        return (raw - mean[:, None, None]) * gain[:, None, None] + self.shift[:, None, None], logvar
