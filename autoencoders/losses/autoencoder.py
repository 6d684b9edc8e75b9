"""The training loss of an autoencoder: reconstruction plus what the bottleneck asks for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from autoencoders import logit_laplace
from autoencoders.autoencoder import AutoencoderOutput
from autoencoders.checks import check_int, check_number
from autoencoders.losses.reconstruction import huber, l1, l2

Reconstruction = Literal["l1", "l2", "huber", "logit_laplace"]
_LATER = ("huber_delta", "kl_warmup_steps")  # settings that older runs did not have


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms.

    With R the error summed over the D = C * H * W numbers of an image and K the KL in nats summed over its latents, a
    KL model minimises the mean over images of (R + kl_weight * K) / D. That is latent-diffusion's R + 1e-6 * K up to
    the constant D: a kl_weight means the same here and there, at every image size. The loss is a negative evidence
    bound, times kl_weight / D and up to a constant, where kl_weight = b, the scale of a Laplace likelihood (l1), or
    kl_weight = 2 s^2, s the standard deviation of a Gaussian one (l2). With logit_laplace R is a negative
    log-likelihood itself, and the bound has kl_weight = 1.

    A VQ model minimises R / D + codebook_weight * (codebook + commitment), both of them means over latent elements;
    an LFQ model R / D + codebook_weight * (entropy + commitment).
    """

    reconstruction: Reconstruction = "l1"
    """Mean absolute (l1) or mean squared error (l2), the one for large and the other for small errors (huber), or a
    likelihood whose scale is learned pixel by pixel (logit_laplace, of DALL-E: the decoder has twice the outputs)."""
    huber_delta: float = 0.1
    """huber: errors up to here count squared, on pixels from -1 to 1."""
    kl_weight: float = 1e-6
    """kl, bn, vmf, gumbel, nvae: weight of the KL in nats an image against the error summed over an image."""
    kl_warmup_steps: int = 0
    """kl, bn, vmf, gumbel, nvae: the weight of the KL rises from 0 over so many steps."""
    codebook_weight: float = 1.0
    """vq, vqvae2, lfq: weight of the codebook, commitment and entropy terms."""

    def __post_init__(self) -> None:
        known = get_args(Reconstruction)
        if self.reconstruction not in known:
            raise ValueError(f"reconstruction: expected one of {', '.join(known)}, got {self.reconstruction!r}")
        for name in ("kl_weight", "codebook_weight"):
            check_number(name, getattr(self, name), 0, 1e6)
        check_number("huber_delta", self.huber_delta, 0, 1e3, above=True)
        check_int("kl_warmup_steps", self.kl_warmup_steps, 0, 2**40)

    def kl_weight_at(self, step: int | None) -> float:
        """The weight of the KL at a training step counted from 0, linear up to kl_warmup_steps; None: at the end."""
        if step is None or step >= self.kl_warmup_steps:
            return self.kl_weight
        return self.kl_weight * step / self.kl_warmup_steps

    def facts(self) -> dict[str, Any]:
        """The settings as a resumed run must share them: those that came later only where they say something."""
        defaults = LossConfig()
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _LATER or value != getattr(defaults, name)
        }


@dataclass(frozen=True)
class LossOutput:
    """The scalar to minimise, and its unweighted terms by name, without gradient, for the log.

    `reconstruction` is the part of the total that compares pictures, with its gradient.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    reconstruction: Tensor


def autoencoder_loss(
    config: LossConfig, images: Tensor, output: AutoencoderOutput, step: int | None = None
) -> LossOutput:
    """The loss of one batch: images (B, C, H, W) in [-1, 1] against what `Autoencoder.forward` made of them.

    `step`, counted from 0, is where the training is; without it every weight is as at the end of its ramp.
    """
    if output.reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction {tuple(output.reconstruction.shape)} of images {tuple(images.shape)}")
    weights = {
        "kl": config.kl_weight_at(step) / images[0].numel(),
        "free_bits": config.kl_weight_at(step) / images[0].numel(),
        "codebook": config.codebook_weight,
        "commitment": config.codebook_weight,
        "entropy": config.codebook_weight,
    }
    reconstruction = reconstruction_error(config, images, output)
    total = reconstruction
    for name, value in output.losses.items():
        total = total + weights[name] * value
    terms = {"reconstruction": reconstruction, **output.losses}
    return LossOutput(total, {name: value.detach() for name, value in terms.items()}, reconstruction)


def reconstruction_error(config: LossConfig, images: Tensor, output: AutoencoderOutput) -> Tensor:
    """The error or negative log-likelihood that the settings name, a mean over all numbers of the images."""
    if config.reconstruction == "logit_laplace":
        if output.likelihood is None:
            raise ValueError("reconstruction logit_laplace needs an autoencoder with decoder_output logit_laplace")
        return logit_laplace.negative_log_likelihood(images, output.likelihood.to(images.dtype))
    reconstruction = output.reconstruction.to(images.dtype)
    if config.reconstruction == "huber":
        return huber(images, reconstruction, config.huber_delta)
    return (l1 if config.reconstruction == "l1" else l2)(images, reconstruction)
