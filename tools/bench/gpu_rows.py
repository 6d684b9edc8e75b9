"""What only a GPU shows: large batches in half precision, sampling of 1 and of 64, what each guidance costs.

On a CPU they run as well when named, with small batches, so that a GPU runs nothing that was never run before.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tools.bench.models import networks
from tools.bench.row import Benchmark, Pair, apart, row
from tools.bench.sampling_rows import INTERVAL, _sampling
from tools.bench.sampling_rows import _Both as Sampling
from tools.bench.training_rows import _step

_NETWORK = "cifar10-gpu"  # 36M parameters on latents 4 x 16 x 16
_HALF = {"compiles": True, "half": True, "devices": ("cuda",)}


@row("forward-36m", "U-Net forward, 36M parameters, batch 256, bf16 (on a CPU 2)", **_HALF)
def forward_36m(benchmark: Benchmark) -> Pair:
    both = networks(benchmark, _NETWORK, 256 if benchmark.device.type == "cuda" else 2)

    def run(function: object) -> Tensor:
        assert callable(function)
        with torch.no_grad(), torch.autocast(benchmark.device.type, torch.bfloat16):
            return function()

    def ours() -> Tensor:
        return run(both.run_ours)

    def theirs() -> Tensor:
        return run(both.run_theirs)

    return Pair(ours, theirs, lambda: apart(ours(), theirs()), tolerance=5e-2, bytes=both.moved)


@row("step-36m", "training step, 36M parameters, batch 256, bf16 (on a CPU 2)", **_HALF)
def step_36m(benchmark: Benchmark) -> Pair:
    """Images a second are the batch over these times."""
    return _step(benchmark, 256 if benchmark.device.type == "cuda" else 2, _NETWORK, "bf16")


@row("sample-1", "1 picture, 25 DDIM steps, CFG, quick start", compiles=True, devices=("cuda",))
def sample_1(benchmark: Benchmark) -> Pair:
    both = Sampling(benchmark, 1, _sampling(benchmark))
    return Pair(both.ours, both.theirs, lambda: apart(both.ours(), both.theirs()), tolerance=1e-3)


@row("sample-64", "64 pictures, 25 DDIM steps, CFG, quick start", compiles=True, devices=("cuda",))
def sample_64(benchmark: Benchmark) -> Pair:
    both = Sampling(benchmark, 64, _sampling(benchmark))
    return Pair(both.ours, both.theirs, lambda: apart(both.ours(), both.theirs()), tolerance=1e-3)


_GUIDED: dict[str, dict[str, Any]] = {
    "cfg": {"guidance_scale": 3.0},
    "cfg-half": {"guidance_scale": 3.0, "guidance_interval": INTERVAL},
    "apg": {"guidance": ("apg(3)",)},
    "pag": {"guidance": ("pag(3)",)},
    "seg": {"guidance": ("seg(3)",)},
    "slg": {"guidance": ("slg(3)",)},
}


def _cost(benchmark: Benchmark, changes: dict[str, Any]) -> Pair:
    """How many times as long a guided run of ours takes as an unguided one, which agrees with diffusers' loop."""
    unguided = dataclasses.replace(_sampling(benchmark), guidance_scale=1.0)
    both = Sampling(benchmark, 64 if benchmark.device.type == "cuda" else 2, unguided)
    guided = dataclasses.replace(unguided, **changes)
    every = range(unguided.num_inference_steps)
    difference = lambda: apart(both.ours(), both.theirs(every))  # noqa: E731
    return Pair(both.ours, lambda: both.ours(guided), difference, tolerance=1e-3)


for _name, _changes in _GUIDED.items():
    row(f"cost-{_name}", f"a run under {_name} (as `theirs`) against one without guidance", devices=("cuda",))(
        partial(_cost, changes=_changes)
    )
