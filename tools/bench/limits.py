"""The ceilings of this machine: its fastest product or convolution, and its fastest copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tools.bench.timing import clock


@dataclass(frozen=True)
class Ceilings:
    """Floating-point operations a second of a product and of a convolution; bytes a second, read and written."""

    matmul: float
    convolution: float
    copy: float
    half: float
    """Of a product in bf16."""

    def limit_ms(self, flops: float, moved: float, *, half: bool = False) -> float:
        """The least time of so much arithmetic and so many bytes, in milliseconds."""
        return 1e3 * max(flops / (self.half if half else max(self.matmul, self.convolution)), moved / self.copy)


def measure(device: torch.device, *, quick: bool) -> Ceilings:
    """The best of some trials of each, in float32 (on a GPU with TensorFloat-32, as the trainings have it)."""
    large = device.type == "cuda"
    n, width, size = (8192, 256, 64) if large else (512 if quick else 1024, 64, 32)
    numbers = (1 << 28) if large else (1 << 22) if quick else (1 << 25)
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    images = torch.randn(8, width, size, size, device=device).to(memory_format=torch.channels_last)
    kernel = torch.randn(width, width, 3, 3, device=device).to(memory_format=torch.channels_last)
    source, target = torch.randn(numbers, device=device), torch.empty(numbers, device=device)
    timed, trials = clock(device), 3 if quick else 8

    def best(function: object, calls: int) -> float:
        assert callable(function)
        return min(timed(function, calls) for _ in range(trials)) / 1e3

    with torch.no_grad():
        c, d = a.bfloat16(), b.bfloat16()
        halves = 2 * n**3 / best(lambda: torch.mm(c, d), 2)
        product = 2 * n**3 / best(lambda: torch.mm(a, b), 2)
        convolved = 2 * 9 * images.numel() * width / best(lambda: F.conv2d(images, kernel, padding=1), 4)
        copied = 2 * 4 * numbers / best(lambda: target.copy_(source), 2)
    return Ceilings(product, convolved, copied, halves)
