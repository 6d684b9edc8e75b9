"""The linear autoencoder in closed form: principal components of whole images or of patches.

Of all linear maps to k numbers and back, x_hat = mean + V U (x - mean), with the k leading eigenvectors of the
covariance as rows of U and V = U^T, has the least squared error: the sum of the eigenvalues left out (Eckart and Young
1936; Baldi and Hornik 1989). Any invertible rescaling, U -> A U and V -> V A^-1, is as good.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.coders.blocks import Coder


class LinearEncoder(Coder):
    """Images (B, C, H, W) -> latents (B, k, H / p, W / p): U (x - mean) of each patch, a convolution of stride p."""

    def __init__(self, in_channels: int, latent_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(latent_channels, in_channels, patch, patch))  # U
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        self.bias = nn.Parameter(torch.zeros(latent_channels))  # -U mean

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=self.patch)


class LinearDecoder(Coder):
    """Latents (B, k, h, w) -> images (B, C, h p, w p): mean + V z of each patch."""

    def __init__(self, in_channels: int, latent_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(latent_channels, in_channels, patch, patch))  # V, transposed
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        self.mean = nn.Parameter(torch.zeros(in_channels, patch, patch))

    def forward(self, z: Tensor) -> Tensor:
        x = F.conv_transpose2d(z, self.weight, stride=self.patch)
        return x + self.mean.repeat(1, z.shape[2], z.shape[3])
