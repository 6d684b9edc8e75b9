"""The training loss of an autoencoder: reconstruction plus what the bottleneck asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from autoencoders.autoencoder import AutoencoderOutput
from autoencoders.losses.reconstruction import RECONSTRUCTIONS


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms.

    With R the error summed over the D = C * H * W numbers of an image and K the KL in nats summed over its latents, a
    KL model minimises the mean over images of (R + kl_weight * K) / D. That is latent-diffusion's R + 1e-6 * K up to
    the constant D: a kl_weight means the same here and there, at every image size. The loss is a negative evidence
    bound, times kl_weight / D and up to a constant, where kl_weight = b, the scale of a Laplace likelihood (l1), or
    kl_weight = 2 s^2, s the standard deviation of a Gaussian one (l2).

    A VQ model minimises R / D + codebook_weight * (codebook + commitment), both of them means over latent elements;
    an LFQ model R / D + codebook_weight * (entropy + commitment).
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared error."""
    kl_weight: float = 1e-6
    """kl, bn, vmf, gumbel, nvae: weight of the KL in nats an image against the error summed over an image."""
    codebook_weight: float = 1.0
    """vq, vqvae2, lfq: weight of the codebook, commitment and entropy terms."""

    def __post_init__(self) -> None:
        if self.reconstruction not in RECONSTRUCTIONS:
            raise ValueError(
                f"reconstruction: expected one of {', '.join(RECONSTRUCTIONS)}, got {self.reconstruction!r}"
            )
        for name in ("kl_weight", "codebook_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e6:
                raise ValueError(f"{name}: expected a number from 0 to 1e6, got {value!r}")


@dataclass(frozen=True)
class LossOutput:
    """The scalar to minimise, and its unweighted terms by name, without gradient, for the log."""

    total: Tensor
    terms: Mapping[str, Tensor]


def autoencoder_loss(config: LossConfig, images: Tensor, output: AutoencoderOutput) -> LossOutput:
    """The loss of one batch: images (B, C, H, W) in [-1, 1] against what `Autoencoder.forward` made of them."""
    if output.reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction {tuple(output.reconstruction.shape)} of images {tuple(images.shape)}")
    weights = {
        "kl": config.kl_weight / images[0].numel(),
        "free_bits": config.kl_weight / images[0].numel(),
        "codebook": config.codebook_weight,
        "commitment": config.codebook_weight,
        "entropy": config.codebook_weight,
    }
    reconstruction = RECONSTRUCTIONS[config.reconstruction](images, output.reconstruction.to(images.dtype))
    total = reconstruction
    for name, value in output.losses.items():
        total = total + weights[name] * value
    terms = {"reconstruction": reconstruction, **output.losses}
    return LossOutput(total, {name: value.detach() for name, value in terms.items()})
