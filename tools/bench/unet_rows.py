"""The U-Net against diffusers' `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tools.bench.models import Networks, networks
from tools.bench.row import Benchmark, Pair, apart, row


def _forward(benchmark: Benchmark, name: str, batch: int) -> Pair:
    both = networks(benchmark, name, batch)
    ours, theirs = torch.no_grad()(both.run_ours), torch.no_grad()(both.run_theirs)
    return Pair(ours, theirs, lambda: apart(ours(), theirs()), bytes=both.moved)


@row("forward-quickstart", "U-Net forward, quick start (text), batch 1", goal=1.25, compiles=True)
def forward_quickstart(benchmark: Benchmark) -> Pair:
    return _forward(benchmark, "quickstart", 1)


@row("forward-cifar10", "U-Net forward, CIFAR-10 (classes), batch 1", goal=1.25, compiles=True)
def forward_cifar10(benchmark: Benchmark) -> Pair:
    return _forward(benchmark, "cifar10", 1)


@row("forward-batch", "U-Net forward, CIFAR-10, batch 32", compiles=True)
def forward_batch(benchmark: Benchmark) -> Pair:
    return _forward(benchmark, "cifar10", 32)


def _stepped(network: nn.Module, run: Callable[[], Tensor]) -> Callable[[], None]:
    def forward_backward() -> None:
        run().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return forward_backward


def _gradients(network: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    run().square().mean().backward()
    gradient = torch.cat(
        [weight.grad.flatten() for _, weight in sorted(network.named_parameters()) if weight.grad is not None]
    )
    network.zero_grad(set_to_none=True)
    return gradient


def _backward(benchmark: Benchmark, name: str, batch: int) -> Pair:
    both: Networks = networks(benchmark, name, batch, train=True)
    ours, theirs = _stepped(both.ours, both.run_ours), _stepped(both.theirs, both.run_theirs)

    def difference() -> float:
        return apart(_gradients(both.ours, both.run_ours), _gradients(both.theirs, both.run_theirs))

    return Pair(ours, theirs, difference, tolerance=1e-4, bytes=3 * both.moved)


@row("backward-quickstart", "U-Net forward and backward, quick start, batch 1", goal=1.05, compiles=True)
def backward_quickstart(benchmark: Benchmark) -> Pair:
    return _backward(benchmark, "quickstart", 1)


@row("backward-cifar10", "U-Net forward and backward, CIFAR-10, batch 32", goal=1.05, compiles=True)
def backward_cifar10(benchmark: Benchmark) -> Pair:
    return _backward(benchmark, "cifar10", 32)
