"""Randomness as an argument: one stream a sample, so that a sample depends on its own seed and on nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.level import Level


def stream(seed: int, index: int, purpose: str) -> torch.Generator:
    """The CPU generator of sample `index` for `purpose`, keyed by SHA-256: close seeds give independent streams."""
    digest = hashlib.sha256(f"{int(seed)}/{int(index)}/{purpose}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class SampleNoise:
    """The noise of a batch: row i depends on (seed, indices[i], purpose), not on the batch, its order or the device.

    Numbers are drawn in float32 on the CPU, so that the noise is the same for every dtype and device.
    """

    def __init__(self, seed: int, indices: Sequence[int], purpose: str = "sample") -> None:
        if not len(indices):
            raise ValueError("expected the index of at least one sample; got none")
        self.seed, self.indices, self.purpose = int(seed), tuple(int(i) for i in indices), purpose
        self._streams = [stream(seed, i, f"{purpose}/steps") for i in self.indices]

    def initial(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Unit normal noise to start from: (B, *shape), where `shape` is that of one sample. The same at every call."""
        # torch's CPU generator keeps 32 bits of a seed: of 50,000 samples two would start alike one time in four;
        # two generators together have 64
        streams = ([stream(self.seed, i, f"{self.purpose}/initial/{part}") for i in self.indices] for part in "ab")
        a, b = (_standard_normal(generators, tuple(shape)) for generators in streams)
        return ((a + b) / math.sqrt(2)).to(device=device, dtype=dtype)

    def __call__(self, like: Tensor, now: Level, next: Level) -> Tensor:
        """Fresh unit normal noise like `like` (B, ...) for the step now -> next."""
        if like.shape[0] != len(self.indices):
            raise ValueError(f"this noise is for {len(self.indices)} samples; got a batch of {like.shape[0]}")
        return _standard_normal(self._streams, tuple(like.shape[1:])).to(device=like.device, dtype=like.dtype)


class BrownianNoise(SampleNoise):
    """Noise from one Brownian path a sample, so that more or fewer steps, or another SDE solver, follow the same path.

    The time of the path is the signal-to-noise ratio e^(2 lambda): the noise that the reverse SDE adds from lambda_s
    to lambda_t, sigma_t (1 - e^(-2h))^(1/2) z, is sigma_t^2 / alpha_t (W(e^(2 lambda_t)) - W(e^(2 lambda_s))), since
    it is sigma_t integral e^(lambda - lambda_t) sqrt(2) dB. Values are found by halving an interval of lambda, with
    noise keyed by the node of the interval (a virtual Brownian tree, Li et al. 2020, arXiv:2001.01328, section 4),
    and do not depend on earlier calls. For solvers that only go down: churn covers some intervals twice.
    """

    _END, _DEPTH = 24.0, 16  # lambda in [-24, 24], halved 16 times

    def __init__(self, seed: int, indices: Sequence[int], purpose: str = "sample") -> None:
        super().__init__(seed, indices, purpose)
        self._shape: tuple[int, ...] = ()
        self._nodes: list[tuple[float, float, int, Tensor, Tensor]] = []  # the last descent: low, high, node, W, W

    def __call__(self, like: Tensor, now: Level, next: Level) -> Tensor:
        if like.shape[0] != len(self.indices):
            raise ValueError(f"this noise is for {len(self.indices)} samples; got a batch of {like.shape[0]}")
        low, high = sorted((now.log_snr, next.log_snr))
        if not low < high <= self._END:
            raise ValueError(f"a Brownian path has no noise from log-SNR {now.log_snr:.6g} to {next.log_snr:.6g}")
        if tuple(like.shape[1:]) != self._shape:
            self._shape, self._nodes = tuple(like.shape[1:]), []
        start, end = self._value(low), self._value(high)
        noise = (end - start) / math.sqrt(_snr_between(low, high))
        return noise.to(device=like.device, dtype=like.dtype)

    def _value(self, at: float) -> Tensor:
        """W at a log-SNR: (B, ...) in float64 on the CPU."""
        if at <= -self._END:
            return torch.zeros((len(self.indices), *self._shape), dtype=torch.float64)
        if not self._nodes:
            end = math.sqrt(_snr_between(-self._END, self._END)) * self._normal("end")
            self._nodes = [(-self._END, self._END, 1, torch.zeros_like(end), end)]
        while not self._nodes[-1][0] <= at <= self._nodes[-1][1]:
            self._nodes.pop()
        low, high, node, left, right = self._nodes[-1]
        while at not in (low, high) and len(self._nodes) <= self._DEPTH:
            middle = (low + high) / 2
            value = self._between(low, middle, high, left, right, node)
            low, high, left, right = (low, middle, left, value) if at <= middle else (middle, high, value, right)
            node = 2 * node + (low == middle)
            self._nodes.append((low, high, node, left, right))
        if at in (low, high):
            return left if at == low else right
        return self._between(low, at, high, left, right, node)

    def _between(self, low: float, at: float, high: float, left: Tensor, right: Tensor, node: int) -> Tensor:
        """The Brownian bridge."""
        before, after, whole = _snr_between(low, at), _snr_between(at, high), _snr_between(low, high)
        return left + (before / whole) * (right - left) + math.sqrt(before * after / whole) * self._normal(str(node))

    def _normal(self, key: str) -> Tensor:
        streams = [stream(self.seed, i, f"{self.purpose}/path/{key}") for i in self.indices]
        return _standard_normal(streams, self._shape).double()


def interpolate(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From noise a to noise b, of unit variance all the way: the great circle between independent normals."""
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight must be in [0, 1]; got {weight!r}")
    if weight in (0, 1):  # the ends are a and b to the last bit, which cos(pi / 2) > 0 would spoil
        return b if weight else a
    return math.cos(weight * math.pi / 2) * a + math.sin(weight * math.pi / 2) * b


def _snr_between(low: float, high: float) -> float:
    return math.exp(2 * low) * math.expm1(2 * (high - low))


def _standard_normal(streams: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in streams])  # (B, *shape)
