"""Losses of two players: a discriminator that tells real from made pictures, and whoever makes them.

A discriminator gives logits of any shape, large for what it takes for real; all losses are means over them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from autoencoders.checks import check_bool, check_int, check_number

Objective = Literal["hinge", "non_saturating", "minimax", "lsgan", "wgan", "wgan_gp"]


def discriminator_loss(objective: Objective, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, given its logits of real and of made pictures.

    minimax, non_saturating: -log D(real) - log(1 - D(fake)), D the sigmoid of the logit (Goodfellow et al. 2014,
    equation 1). hinge: Lim and Ye 2017, also Miyato et al. 2018, equation 16. lsgan: Mao et al. 2017, equation 2 with
    a = 0, b = 1. wgan, wgan_gp: Arjovsky et al. 2017, equation 2, whose penalty or clipping stands apart.
    """
    if objective in ("minimax", "non_saturating"):
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if objective == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if objective == "lsgan":
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())
    return fake.mean() - real.mean()


def generator_loss(objective: Objective, fake: Tensor) -> Tensor:
    """What the maker of pictures minimises, given the discriminator's logits of them.

    minimax: log(1 - D(fake)); non_saturating: -log D(fake) (Goodfellow et al. 2014, section 3); lsgan: (D - 1)^2 / 2
    (Mao et al., equation 2 with c = 1); hinge, wgan, wgan_gp: the negative logit.
    """
    if objective == "minimax":
        return -F.softplus(fake).mean()
    if objective == "non_saturating":
        return F.softplus(-fake).mean()
    if objective == "lsgan":
        return 0.5 * (fake - 1).square().mean()
    return -fake.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Mean of (|grad critic| - 1)^2 between real and made pictures (Gulrajani et al. 2017, equation 3, lambda = 1).

    `share` (B,), uniform in [0, 1), says where between its two pictures each point lies. A critic of several logits a
    picture is taken by their mean.
    """
    share = share.view(-1, *[1] * (real.ndim - 1)).to(real)
    between = fake.detach().lerp(real.detach(), share).requires_grad_(True)
    slope = _input_gradient(critic, between).flatten(1).norm(dim=1)  # (B,)
    return (slope - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Half the mean squared gradient at real pictures (Mescheder et al. 2018, equation 9, gamma = 1)."""
    slope = _input_gradient(critic, real.detach().requires_grad_(True)).flatten(1)
    return 0.5 * slope.square().sum(1).mean()


def _input_gradient(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):  # derivatives of derivatives need the digits
        logits = critic(images.float() if images.dtype in (torch.float16, torch.bfloat16) else images)
    (gradient,) = torch.autograd.grad(logits.reshape(len(images), -1).mean(1).sum(), images, create_graph=True)
    return gradient


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float) -> None:
    """Bring every weight into [-limit, limit] (Arjovsky et al. 2017, algorithm 1)."""
    for weight in critic.parameters():
        weight.clamp_(-limit, limit)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, layer: Tensor, largest: float) -> Tensor:
    """The weight that makes both losses pull equally at `layer`, a scalar without gradient, at most `largest`.

    lambda = |grad reconstruction| / (|grad adversarial| + 1e-4) (Esser et al. 2021, VQGAN, equation 7; the
    constant is that of its code). The gradients are those of all processes together. Both graphs are kept.
    """
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(gradient)
            gradient = gradient / distributed.get_world_size()
        norms.append(gradient.float().norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=largest)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The second player: its network, its loss and its optimiser."""

    objective: Objective = "hinge"
    """Loss of the two players; wgan clips the critic's weights, wgan_gp penalises its slope."""
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
    """Weight (gamma) of the penalty on the discriminator's slope at real pictures; 0: none."""
    r1_every: int = 16
    """The penalty is taken once in so many steps, and is then so many times as strong."""
    gradient_penalty_weight: float = 10.0
    """wgan_gp: weight of the penalty on the critic's slope."""
    weight_clip: float = 0.01
    """wgan: the critic's weights stay within plus and minus this."""

    def __post_init__(self) -> None:
        for each in fields(self):
            choices = get_args(each.type) if isinstance(getattr(self, each.name), str) else ()
            if choices and getattr(self, each.name) not in choices:
                raise ValueError(f"{each.name}: expected one of {', '.join(choices)}, got {getattr(self, each.name)!r}")
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
            raise ValueError(
                "spectral_norm: it bounds the critic's slope already; take hinge, or leave clipping to wgan"
            )


def learning_loss(
    config: DiscriminatorConfig,
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    share: Tensor,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the discriminator minimises at a step, penalties included, and its parts for the log.

    Pictures are (B, C, H, W); made ones are taken without their gradient. `share` (B,) is as in `gradient_penalty`.
    """
    logits = critic(real), critic(fake.detach())
    total = discriminator_loss(config.objective, *logits)
    terms = {"real": logits[0].detach().mean(), "fake": logits[1].detach().mean()}
    if config.objective == "wgan_gp":
        terms["gradient_penalty"] = gradient_penalty(critic, real, fake, share)
        total = total + config.gradient_penalty_weight * terms["gradient_penalty"]
    if config.r1_weight and step % config.r1_every == 0:
        terms["r1"] = r1_penalty(critic, real)
        total = total + config.r1_weight * config.r1_every * terms["r1"]  # lazily: Karras et al. 2020, appendix B
    return total, {name: value.detach() for name, value in terms.items()}


@dataclass(frozen=True)
class AdversarialConfig:
    """What an autoencoder hears of the second player."""

    adversarial_weight: float = 0.0
    """Weight of the adversarial term; 0: there is none, and no discriminator."""
    adaptive: bool = True
    """Scale the weight so that reconstruction and discriminator pull equally at the last layer in each pass."""
    adaptive_max: float = 0.05
    """Largest adaptive scale; published models had 1e4. The scale grows with the gradient of the error, and so when a
    reconstruction gets worse; in the log, adaptive_weight is the scale after this limit."""
    discriminator_start: int = 500
    """Training step from which on the discriminator is heard."""
    discriminator_warmup: int = 500
    """The discriminator learns for so many steps before it is heard, or as many as there are."""
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
        """Whether there is a second player."""
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
