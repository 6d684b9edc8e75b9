"""A hierarchical VAE: groups of latents from coarse to fine, each conditioned on those above it.

Sonderby et al. 2016, arXiv:1602.02282 (ladder); Vahdat and Kautz 2020, arXiv:2007.03898 (NVAE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.bottlenecks.base import Bottleneck, BottleneckOutput, Encoding, full_precision
from autoencoders.bottlenecks.hierarchy import BottomUp, pack, unpack
from autoencoders.coders.blocks import ResnetBlock, Stage, group_norm
from autoencoders.distributed import normal_rows, over_processes, standard_normal

_LOG_SIGMA = 5.0  # |log sigma| of the prior, and of the posterior relative to it, stay below


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
    """One group: p(z | above), q(z | above, image) relative to it, and the state for the groups below."""

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

    def update(self, state: Tensor, z: Tensor) -> Tensor:
        """The state (B, width, h, w) after the group, with its latents added."""
        return self.resnet(state + self.conv_latents(z.to(state.dtype)))


class NVAE(Bottleneck):
    """Features (B, width, H, W) -> L = levels * groups a level groups of latents -> a state (B, width, H, W).

    The state starts as a constant at the coarsest grid. Each group draws its latents conditioned on the state and adds
    them to it; between levels it is upsampled. Bottom-up features enter only the posterior. KL and samples are in nats
    and in the order of the groups, 0 at the top.

    The latents of an image are its posterior means, each group's conditioned on the means of those above: L C
    channels, packed into one tensor at the coarsest grid. They have no standard deviation: the posterior of a group
    depends on the *draws* above it, so that independent noise on all the means would not be a sample of the posterior.

    Loss "kl" is the KL of all groups; with "free_bits" added it is sum_l max(lambda, KL_l), each KL_l a mean over the
    batch, that of all processes in training (Kingma et al. 2016, arXiv:1606.04934, equation 15): a group below lambda
    has no gradient of it.
    """

    def __init__(
        self, levels: int, groups_per_level: int, width: int, channels: int, norm_groups: int, *, free_bits: float = 0.0
    ) -> None:
        super().__init__()
        self.groups_per_level, self.free_bits = groups_per_level, free_bits
        self.channels = [groups_per_level * channels] * levels
        self.bottom_up = BottomUp(levels, width, norm_groups)
        self.start = nn.Parameter(torch.zeros(width))
        count = levels * groups_per_level
        self.groups = nn.ModuleList(Group(width, channels, norm_groups, first=not index) for index in range(count))
        self.up_blocks = nn.ModuleList(Stage(width, width, 1, norm_groups, False, "up") for _ in range(levels - 1))

    def encode(self, features: Tensor) -> Encoding:
        levels, means = self.bottom_up(features), []

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, _ = group.prior_of(state)
            means.append(mean + group.relative(state, levels[index // self.groups_per_level])[0])
            return means[-1]

        self._descend(levels[0], choose)
        return Encoding(self._packed(means))

    def decode(self, latents: Tensor) -> Tensor:
        latents_of_groups = self._groups_of(latents)
        return self._descend(latents, lambda index, group, state: latents_of_groups[index])

    def sample_prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        return self.from_noise(normal_rows(shape, generators).to(self.start))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise, packed as latents are -> the decoder's input for a sample of the prior.

        z_l = mu_l(z above) + sigma_l(z above) * noise_l.
        """
        noise_of_groups = self._groups_of(noise)

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, log_sigma = group.prior_of(state)
            return mean + torch.exp(log_sigma) * noise_of_groups[index]

        return self._descend(noise, choose)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        levels, terms = self.bottom_up(features), []

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, log_sigma = group.prior_of(state)
            delta, log_ratio = group.relative(state, levels[index // self.groups_per_level])
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

        With a group's z = mu + sigma s under its prior and its posterior's noise eps, both conditioned on the draws
        above: log p - log q = sum(eps^2 - s^2) / 2 + log r, r the posterior's deviation over the prior's.
        """
        levels, terms = self.bottom_up(features), []

        def choose(index: int, group: Group, state: Tensor) -> Tensor:
            mean, log_sigma = group.prior_of(state)
            delta, log_ratio = group.relative(state, levels[index // self.groups_per_level])
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
            if index and index % self.groups_per_level == 0:
                state = self.up_blocks[index // self.groups_per_level - 1](state)
            state = group.update(state, choose(index, group, state))
        return state

    def _packed(self, latents: list[Tensor]) -> Tensor:
        """The latents (B, C, h 2^l, w 2^l) of the groups -> one tensor; those of a level side by side."""
        count = self.groups_per_level
        return pack([torch.cat(latents[start : start + count], 1) for start in range(0, len(latents), count)])

    def _groups_of(self, packed: Tensor) -> list[Tensor]:
        return [z for level in unpack(packed, self.channels) for z in level.chunk(self.groups_per_level, 1)]
