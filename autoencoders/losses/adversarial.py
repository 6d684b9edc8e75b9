"""Adversarial losses: of a discriminator of real and generated images, and of the network that generates them.

A discriminator gives logits of any shape, large for images that it classifies as real; all losses are means over them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from autoencoders.losses.config import DiscriminatorConfig, Objective


def discriminator_loss(objective: Objective, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, from its logits of real and of generated images.

    minimax, non_saturating: -log D(real) - log(1 - D(fake)), D the sigmoid of the logit (Goodfellow et al. 2014,
    equation 1). hinge: Lim and Ye 2017, also Miyato et al. 2018, equation 16. lsgan: Mao et al. 2017, equation 2 with
    a = 0, b = 1. wgan, wgan_gp: Arjovsky et al. 2017, equation 2, without penalty or clipping.
    """
    if objective in ("minimax", "non_saturating"):
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if objective == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if objective == "lsgan":
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())
    return fake.mean() - real.mean()


def generator_loss(objective: Objective, fake: Tensor) -> Tensor:
    """The generator's loss, from the discriminator's logits of its images.

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


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, position: Tensor) -> Tensor:
    """Mean of (|grad critic| - 1)^2 between real and generated images (Gulrajani et al. 2017, equation 3, lambda = 1).

    `position` (B,), uniform in [0, 1), is that of each point between its two images. Several logits of an image are
    averaged.
    """
    position = position.view(-1, *[1] * (real.ndim - 1)).to(real)
    between = fake.detach().lerp(real.detach(), position).requires_grad_(True)
    slope = _input_gradient(critic, between).flatten(1).norm(dim=1)  # (B,)
    return (slope - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Half the mean squared gradient at real images (Mescheder et al. 2018, equation 9, gamma = 1)."""
    slope = _input_gradient(critic, real.detach().requires_grad_(True)).flatten(1)
    return 0.5 * slope.square().sum(1).mean()


def _input_gradient(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):  # second derivatives need the digits
        logits = critic(images.float() if images.dtype in (torch.float16, torch.bfloat16) else images)
    (gradient,) = torch.autograd.grad(logits.reshape(len(images), -1).mean(1).sum(), images, create_graph=True)
    return gradient


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float) -> None:
    """Bring every weight into [-limit, limit] (Arjovsky et al. 2017, algorithm 1)."""
    for weight in critic.parameters():
        weight.clamp_(-limit, limit)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, layer: Tensor, largest: float) -> Tensor:
    """The weight of equal gradient norms at `layer`, a scalar without gradient, at most `largest`.

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


def learning_loss(
    config: DiscriminatorConfig,
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    position: Tensor,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's loss at a step, penalties included, and its terms for the log.

    Images are (B, C, H, W), generated ones without their gradient. `position` (B,) is as in `gradient_penalty`.
    """
    logits = critic(real), critic(fake.detach())
    total = discriminator_loss(config.objective, *logits)
    terms = {"real": logits[0].detach().mean(), "fake": logits[1].detach().mean()}
    if config.objective == "wgan_gp":
        terms["gradient_penalty"] = gradient_penalty(critic, real, fake, position)
        total = total + config.gradient_penalty_weight * terms["gradient_penalty"]
    if config.r1_weight and step % config.r1_every == 0:
        terms["r1"] = r1_penalty(critic, real)
        total = total + config.r1_weight * config.r1_every * terms["r1"]  # lazily: Karras et al. 2020, appendix B
    return total, {name: value.detach() for name, value in terms.items()}
