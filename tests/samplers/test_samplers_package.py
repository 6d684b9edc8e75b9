"""samplers stands alone: torch and the standard library, and the example of its docstring runs."""

import ast
import doctest
import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel

import samplers
from samplers import DiscreteSchedule, EpsilonTarget, Prediction, SampleNoise, make_levels, unipc


def test_imports_are_torch_and_the_standard_library():
    allowed = {"torch", "samplers", *sys.stdlib_module_names}
    for path in Path(samplers.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not getattr(node, "level", 0), f"{path}: relative import"
            assert {name.split(".")[0] for name in names} <= allowed, f"{path}: {names}"


def test_the_example_runs():
    assert doctest.testmod(samplers).attempted > 5
    assert doctest.testmod(samplers).failed == 0


def test_every_public_name_exists():
    for name in samplers.__all__:
        assert hasattr(samplers, name)


def test_a_diffusers_unet_samples():
    """The package by itself on somebody else's network."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()

    def denoise(x, level):
        eps = unet(x, level.t).sample
        return Prediction(x, level, EpsilonTarget().x0(eps, x, level.alpha, level.sigma))

    noise = SampleNoise(seed=0, indices=range(2))
    levels = make_levels(DiscreteSchedule(), 4)
    with torch.no_grad():
        for step in unipc(denoise, noise.initial((1, 8, 8)), levels):
            assert torch.isfinite(step.x).all()
    assert step.x.shape == (2, 1, 8, 8) and step.level.sigma == 0
