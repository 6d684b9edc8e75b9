"""A hierarchical VAE: groups of latents from coarse to fine, each given those above it.

Sonderby et al. 2016, arXiv:1602.02282 (ladder); Vahdat and Kautz 2020, arXiv:2007.03898 (NVAE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Encoding, full_precision, normal_rows, standard_normal
from autoencoders.bottlenecks.hierarchy import MAX_LEVELS, MAX_WIDTH, BottomUp, pack, unpack
from autoencoders.checks import check_int, check_number
from autoencoders.coders.blocks import ResnetBlock, Stage, group_norm
from autoencoders.distributed import over_processes

_LOG_SIGMA = 5.0  # |log sigma| of the prior, and of the posterior relative to it, stay below


@dataclass(frozen=True)
class NVAEConfig:
    """Settings of the bottleneck "nvae"."""

    group_levels: int = 2
    """nvae: levels of latents; the finest is the coder's grid, each other is half as fine as the next."""
    groups_per_level: int = 2
    """nvae: groups of latent_channels channels on each level, drawn one after another."""
    group_width: int = 64
    """nvae: channels of the network between the groups."""
    free_bits: float = 1.0
    """nvae: nats of KL a group and image, in the mean over the batch, that cost nothing; 0: all cost."""

    def __post_init__(self) -> None:
        check_int("group_levels", self.group_levels, 1, MAX_LEVELS)
        check_int("groups_per_level", self.groups_per_level, 1, 64)
        check_int("group_width", self.group_width, 1, MAX_WIDTH)
        check_number("free_bits", self.free_bits, 0, 1e6)


def residual_kl(delta: Tensor, log_ratio: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu + delta, (sigma r)^2) || N(mu, sigma^2)) in nats, summed over all but the first dimension: (B,).

    NVAE, equation 2: 1/2 sum(delta^2 / sigma^2 + r^2 - log r^2 - 1), with log r = `log_ratio`.
    """
    shift = (delta * torch.exp(-log_sigma)).square()
    return 0.5 * (shift + torch.expm1(2 * log_ratio) - 2 * log_ratio).flatten(1).sum(1)


def _bounded(x: Tensor) -> Tensor:
    """x near 0, and never beyond +-_LOG_SIGMA."""
    return _LOG_SIGMA * torch.tanh(x / _LOG_SIGMA)


class _Normal(nn.Sequential):
    """States (B, width, h, w) -> a mean (B, C, h, w) and the log of a standard deviation, in float32 at least."""

    def __init__(self, width: int, channels: int, groups: int) -> None:
        last = nn.Conv2d(width, 2 * channels, 1)
        nn.init.normal_(last.weight, std=0.1 * width**-0.5)  # at first nearly 0 and 1
        super().__init__(group_norm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), last)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sigma = full_precision(super().forward(state)).chunk(2, 1)
        return mean, _bounded(log_sigma)


class Group(nn.Module):
    """One group: p(z | above), q(z | above, image) relative to it, and what the groups below are told."""

    def __init__(self, width: int, channels: int, groups: int, first: bool) -> None:
        super().__init__()
        self.channels = channels
        self.prior = None if first else _Normal(width, channels, groups)  # of the first: a standard normal
        self.conv_posterior = nn.Conv2d(2 * width, width, 1)
        self.posterior = _Normal(width, channels, groups)
        self.conv_latents = nn.Conv2d(channels, width, 1)
        self.resnet = ResnetBlock(width, width, groups)

    def prior_of(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (B, C, h, w) of p, from the state of the groups above."""
        if self.prior is not None:
            return self.prior(state)
        zero = full_precision(state.new_zeros(len(state), self.channels, *state.shape[2:]))
        return zero, zero

    def relative(self, state: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """delta and log r (B, C, h, w): the mean of q is that of p plus delta, its deviation that of p times r."""
        return self.posterior(self.conv_posterior(torch.cat([state, features], 1)))

    def tell(self, state: Tensor, z: Tensor) -> Tensor:
        """The state (B, width, h, w) after the group's latents are known."""
        return self.resnet(state + self.conv_latents(z.to(state.dtype)))


class NVAE(nn.Module):
    """Features (B, width, H, W) -> L = levels * groups a level groups of latents -> a state (B, width, H, W).

    The state starts as a constant at the coarsest grid. Each group draws its latents given the state and adds them to
    it; between levels it is upsampled. Bottom-up features enter only the posterior. KL and samples are in nats and in
    the order of the groups, 0 at the top.

    The latents of an image are its posterior means, each group's given the means of those above: L C channels, packed
    into one tensor at the coarsest grid. They have no standard deviation: the posterior of a group depends on what was
    *drawn* above it, so that independent noise on all the means would not be a sample of the posterior.

    Loss "kl" is the KL of all groups, as it is; "free_bits" is what lifts it to sum_l max(lambda, KL_l), each KL_l a
    mean over the batch, that of all processes in training (Kingma et al. 2016, arXiv:1606.04934, equation 15): a
    group below lambda feels no pressure.
    """

    def __init__(self, config: NVAEConfig, channels: int, groups: int) -> None:
        super().__init__()
        levels, width, each = config.group_levels, config.group_width, config.groups_per_level
        self.each, self.width, self.free_bits = each, width, config.free_bits
        self.channels = [each * channels] * levels
        self.bottom_up = BottomUp(levels, width, groups)
        self.start = nn.Parameter(torch.zeros(width))
        self.groups = nn.ModuleList(Group(width, channels, groups, first=not index) for index in range(levels * each))
        self.up_blocks = nn.ModuleList(Stage(width, width, 1, groups, False, "up") for _ in range(levels - 1))

    def feature_channels(self, latent_channels: int) -> int:
        return self.width

    def encode(self, features: Tensor) -> Encoding:
        levels, found = self.bottom_up(features), []

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, _ = group.prior_of(state)
            found.append(mean + group.relative(state, levels[index // self.each])[0])
            return found[-1]

        self._descend(levels[0], choose)
        return Encoding(self._packed(found))

    def decode(self, latents: Tensor) -> Tensor:
        given = self._groups_of(latents)
        return self._descend(latents, lambda index, group, state: given[index])

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """From the prior, top-down: the decoder's input for latents (B, *shape), row i by generator i."""
        return self.from_noise(normal_rows(shape, generators).to(self.start))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise, packed as latents are -> the decoder's input for a sample of the prior.

        z_l = mu_l(z above) + sigma_l(z above) * noise_l.
        """
        given = self._groups_of(noise)

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, log_sigma = group.prior_of(state)
            return mean + torch.exp(log_sigma) * given[index]

        return self._descend(noise, choose)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        levels, terms = self.bottom_up(features), []

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, log_sigma = group.prior_of(state)
            delta, log_ratio = group.relative(state, levels[index // self.each])
            terms.append(residual_kl(delta, log_ratio, log_sigma).mean())
            if generator is None:
                return mean + delta
            return mean + delta + torch.exp(log_sigma + log_ratio) * standard_normal(mean, generator)

        state = self._descend(levels[0], choose)
        kl = torch.stack(terms)  # (L,)
        losses = {"kl": kl.sum()}
        if self.free_bits:
            losses["free_bits"] = F.relu(self.free_bits - (over_processes(kl) if self.training else kl)).sum()
        return BottleneckOutput(state, losses, {f"kl_{index}": term.detach() for index, term in enumerate(terms)})

    def weighted_sample(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's input for z drawn from q(z | x), and log p(z) - log q(z | x) in nats, (B,) in float64.

        With a group's z = mu + sigma s under its prior and its posterior's noise eps, both given what was drawn above:
        log p - log q = sum(eps^2 - s^2) / 2 + log r, r the posterior's deviation over the prior's.
        """
        levels, terms = self.bottom_up(features), []

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, log_sigma = group.prior_of(state)
            delta, log_ratio = group.relative(state, levels[index // self.each])
            noise = standard_normal(mean, generator)
            step = delta + torch.exp(log_sigma + log_ratio) * noise
            standard = (step * torch.exp(-log_sigma)).cpu().double()
            term = 0.5 * (noise.cpu().double().square() - standard.square()) + log_ratio.cpu().double()
            terms.append(term.flatten(1).sum(1))
            return mean + step

        state = self._descend(levels[0], choose)
        return state, torch.stack(terms).sum(0)

    def _descend(self, like: Tensor, choose: Callable[[int, Group, Tensor], Tensor]) -> Tensor:
        """The state (B, width, H, W) after all groups, whose latents `choose(index, group, state)` gives.

        `like` has the batch size and the coarsest grid.
        """
        state = self.start[:, None, None].expand(len(like), -1, *like.shape[2:])
        for index, group in enumerate(self.groups):
            assert isinstance(group, Group)
            if index and index % self.each == 0:
                state = self.up_blocks[index // self.each - 1](state)
            state = group.tell(state, choose(index, group, state))
        return state

    def _packed(self, latents: list[Tensor]) -> Tensor:
        """The latents (B, C, h 2^l, w 2^l) of the groups -> one tensor; those of a level side by side."""
        return pack([torch.cat(latents[start : start + self.each], 1) for start in range(0, len(latents), self.each)])

    def _groups_of(self, packed: Tensor) -> list[Tensor]:
        return [part for level in unpack(packed, self.channels) for part in level.chunk(self.each, 1)]
