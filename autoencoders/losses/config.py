"""The settings of the losses, checked when they are made. Imports no torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from autoencoders.settings import check_bool, check_int, check_number

Reconstruction = Literal["l1", "l2", "huber", "logit_laplace"]
Perceptual = Literal["none", "lpips", "features"]
Objective = Literal["hinge", "non_saturating", "minimax", "lsgan", "wgan", "wgan_gp"]
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
    an LFQ model R / D + codebook_weight * (entropy + commitment). Loss terms of other names have the weight 1.
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

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share; those that older runs did not have only where changed."""
        defaults = asdict(LossConfig())
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != defaults[name]}


@dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual term of the loss of an autoencoder."""

    perceptual: Perceptual = "none"
    """lpips: distance in features of a network trained on ImageNet, weighted by human judgements (needs its weights);
    features: in those of a small network that is trained on the data set itself, once."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance, against the mean error of a pixel."""
    lpips_network: Literal["vgg", "alex"] = "vgg"
    """lpips: the network whose features are compared."""
    lpips_weights: str | None = None
    """lpips: file with the weights of that network; default: torch hub's cache. Nothing is downloaded."""

    def __post_init__(self) -> None:
        if self.perceptual not in get_args(Perceptual):
            raise ValueError(f"perceptual: expected one of {', '.join(get_args(Perceptual))}, got {self.perceptual!r}")
        check_number("perceptual_weight", self.perceptual_weight, 0, 1e6)

    @property
    def active(self) -> bool:
        """Whether there is such a term."""
        return self.perceptual != "none" and self.perceptual_weight > 0

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share; the path of the weights is none."""
        network = {"lpips_network": self.lpips_network} if self.perceptual == "lpips" else {}
        return {"perceptual": self.perceptual, "perceptual_weight": self.perceptual_weight, **network}


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator: its network, its loss and its optimiser."""

    objective: Objective = "hinge"
    """The adversarial losses; wgan clips the critic's weights, wgan_gp penalises its slope."""
    discriminator: Literal["patch", "residual"] = "patch"
    """patch: a logit for every patch of the image (PatchGAN); residual: one an image, which is compared with its
    neighbours in the batch too (as in StyleGAN 2)."""
    discriminator_width: int = 64
    """Channels of the first layer; they double with every halving of the image, up to 8 times as many."""
    discriminator_layers: int = 3
    """Layers that halve the image; residual: at most as many as leave 4 pixels a side."""
    spectral_norm: bool = False
    """Divide each kernel by its largest singular value, in place of normalising activations."""
    discriminator_learning_rate: float = 2e-4
    """Peak learning rate of the discriminator; follows the same schedule as the other."""
    discriminator_beta1: float = 0.5
    discriminator_beta2: float = 0.9
    r1_weight: float = 0.0
    """Weight (gamma) of the penalty on the discriminator's slope at real images; 0: none."""
    r1_every: int = 16
    """The penalty is taken once in so many steps, and is then so many times as strong."""
    gradient_penalty_weight: float = 10.0
    """wgan_gp: weight of the penalty on the critic's slope."""
    weight_clip: float = 0.01
    """wgan: the critic's weights stay within plus and minus this."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            choices = get_args(entry.type) if isinstance(getattr(self, entry.name), str) else ()
            if choices and getattr(self, entry.name) not in choices:
                raise ValueError(
                    f"{entry.name}: expected one of {', '.join(choices)}, got {getattr(self, entry.name)!r}"
                )
        check_int("discriminator_width", self.discriminator_width, 1, 4096)
        check_int("discriminator_layers", self.discriminator_layers, 1, 10)
        check_int("r1_every", self.r1_every, 1, 2**40)
        check_bool("spectral_norm", self.spectral_norm)
        for name in ("r1_weight", "gradient_penalty_weight"):
            check_number(name, getattr(self, name), 0, 1e6)
        for name in ("discriminator_learning_rate", "weight_clip"):
            check_number(name, getattr(self, name), 0, 1e3, above=True)
        for name in ("discriminator_beta1", "discriminator_beta2"):
            check_number(name, getattr(self, name), 0, 0.99999)
        if self.spectral_norm and self.objective == "wgan":
            raise ValueError("spectral_norm: bounds the critic's slope already; take hinge, or leave clipping to wgan")


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial term in the loss of an autoencoder."""

    adversarial_weight: float = 0.0
    """Weight of the adversarial term; 0: there is none, and no discriminator."""
    adaptive: bool = True
    """Scale the weight so that reconstruction and discriminator pull equally at the last layer in each pass."""
    adaptive_max: float = 0.05
    """Largest adaptive scale; published models had 1e4. The scale grows with the gradient of the error, and so when
    reconstructions get worse; in the log, adaptive_weight is the scale after this limit."""
    discriminator_start: int = 500
    """Training step from which on the adversarial term is in the loss."""
    discriminator_warmup: int = 500
    """The discriminator learns for so many steps before that, or as many as there are."""
    adversarial_ramp: int = 500
    """Steps over which the adversarial weight rises from 0 to its value."""

    def __post_init__(self) -> None:
        check_number("adversarial_weight", self.adversarial_weight, 0, 1e6)
        check_number("adaptive_max", self.adaptive_max, 0, 1e6, above=True)
        check_bool("adaptive", self.adaptive)
        for name in ("discriminator_start", "discriminator_warmup", "adversarial_ramp"):
            check_int(name, getattr(self, name), 0, 2**40)

    @property
    def active(self) -> bool:
        """Whether there is a discriminator."""
        return self.adversarial_weight > 0

    def weight_at(self, step: int) -> float:
        """The weight of the adversarial term at a training step counted from 0: 0 before the start, then a ramp."""
        since = step - self.discriminator_start
        if since < 0:
            return 0.0
        return self.adversarial_weight * min(1.0, (since + 1) / max(1, self.adversarial_ramp))

    def learns_at(self, step: int) -> bool:
        """Whether the discriminator learns at a training step counted from 0."""
        return step >= self.discriminator_start - self.discriminator_warmup
