"""Encoding and decoding in pieces give what the whole gives, seams included, in a quarter of the memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from autoencoders import Autoencoder, AutoencoderConfig, Tiling, measure_latents

SHAPE = {"block_out_channels": (16, 32, 64, 64), "norm_num_groups": 1, "attention": False, "latent_channels": 8}


def model(**changes):
    made = Autoencoder(AutoencoderConfig(**{**SHAPE, **changes})).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(1)
    for parameter in made.parameters():  # new blocks start as their shortcuts; trained ones do not stay so
        if parameter.ndim == 4 and not parameter.any():
            torch.nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=draws)
    return made


def picture(height, width):
    """Smooth colours, hard-edged discs on the left and flat ground below: tiles with very different statistics."""
    draws = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = torch.stack([torch.sin(3 * x + 5 * y), torch.cos(7 * x * y), x - y]) / 2
    for _ in range(40):
        colour, (a, b), r = (torch.rand(n, generator=draws) * 2 - 1 for n in (3, 2, 1))
        disc = ((x - a) ** 2 + (y - b) ** 2 < (r / 5) ** 2) & (x < 0.3)
        image = torch.where(disc, colour[:, None, None], image)
    image[:, int(0.8 * height) :] = 0.9
    return image[None].clamp(-1, 1)


def worst_window(image, expected):
    """PSNR in dB, of numbers in [-1, 1], in the worst of all 64 x 64 windows 8 pixels apart."""
    window = min(64, *image.shape[2:])
    error = F.avg_pool2d((image - expected).square().mean(1, keepdim=True), window, 8).max().item()
    return 10 * math.log10(4 / max(error, 1e-20))


@pytest.mark.parametrize(
    ("changes", "size", "tiling"),
    [
        ({}, (256, 256), Tiling(tile=64)),
        ({}, (200, 136), Tiling(tile=64, tile_overlap=0)),
        (
            {"norm_num_groups": 8, "layers_per_block": 2, "attention": True},
            (128, 192),
            Tiling(tile=64, tile_overlap=64),
        ),
        ({"attention_levels": (1,)}, (96, 64), Tiling(tile=32, tile_overlap=8)),
        ({"attention_levels": (0,)}, (32, 64), Tiling(tile=32, tile_overlap=8)),
        ({"bottleneck": "vq", "block_out_channels": (16, 32)}, (64, 96), Tiling(tile=16, tile_overlap=4)),
        ({"block_out_channels": (16,)}, (64, 64), Tiling(tile=32)),
    ],
)
def test_tiles_agree_with_the_whole(changes, size, tiling):
    autoencoder, images = model(**changes), torch.cat([picture(*size), -picture(*size).flip(-1)])
    autoencoder.calibrate(*measure_latents(autoencoder, [images]))
    whole, pieces = autoencoder.encode(images), autoencoder.encode(images, tiling=tiling)
    torch.testing.assert_close(pieces.mean, whole.mean, rtol=0, atol=1e-2)
    assert (pieces.std is None) == (whole.std is None)
    decoded = autoencoder.decode(whole.mean)
    assert worst_window(autoencoder.decode(whole.mean, tiling=tiling), decoded) > 50
    assert worst_window(autoencoder.decode(pieces.mean, tiling=tiling), decoded) > 40


def test_without_the_passes_tiles_would_show():
    """The statistics of each tile alone are far from good enough: what this module is for."""
    autoencoder, image = model(), picture(256, 256)
    latents = autoencoder.encode(image).mean
    apart = torch.cat(
        [torch.cat([autoencoder.decode(part) for part in row.split(8, 3)], 3) for row in latents.split(8, 2)], 2
    )
    assert worst_window(apart, autoencoder.decode(latents)) < 30


def test_slices_are_the_images_one_by_one():
    autoencoder, images = model(block_out_channels=(16, 32)), torch.cat([picture(32, 32), -picture(32, 32)])
    sizes = []
    autoencoder.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    latents = autoencoder.encode(images, tiling=Tiling(slicing=True)).mean
    assert sizes == [1, 1]
    torch.testing.assert_close(latents, autoencoder.encode(images).mean)
    decoded = autoencoder.decode(latents, tiling=Tiling(slicing=True))
    torch.testing.assert_close(decoded, autoencoder.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "`tile` must be above 0, got 0"),
        ({"tile_overlap": -8}, "`tile_overlap` must be 0 or more, got -8"),
        ({"tile": 8}, "`tile_overlap` 16: expected at most `tile`, which is 8"),
        ({"tile": 100}, "`tile` 100: expected a multiple of the autoencoder's factor, 8"),
        ({"tile": 64, "tile_overlap": 12}, "`tile_overlap` 12: expected a multiple"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        model().encode(picture(128, 128), tiling=Tiling(**settings))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="divisible by 8"):
        model().encode(picture(100, 128), tiling=Tiling(tile=64))


def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def reconstruct_alone(size, tile, result):
    """What each process below runs: one image there and back, and by how many bytes that raised the process's peak."""
    torch.set_num_threads(1)
    autoencoder, tiling = model(), Tiling(tile=tile or None)
    autoencoder.decode(autoencoder.encode(picture(64, 64)).mean)  # the libraries' own memory is taken by now
    image = picture(size, size)
    with open("/proc/self/clear_refs", "w") as stream:  # forget the peak that making the picture has left
        stream.write("5")
    before = kilobytes("VmRSS")
    image = autoencoder.decode(autoencoder.encode(image, tiling=tiling).mean, tiling=tiling)
    peak = kilobytes("VmHWM")
    save_file({"image": image.clone()}, result)
    print(json.dumps({"own": (peak - before) * 1024, "all": peak * 1024}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_2048_pixels_within_a_quarter_of_the_memory(tmp_path):
    peaks, images = [], []
    for tile in (0, 256):
        file = tmp_path / f"{tile}.safetensors"
        command = [sys.executable, __file__, "2048", str(tile), str(file)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
        peaks.append(json.loads(answer.stdout))
        images.append(load_file(file)["image"])
    print(peaks, worst_window(images[1], images[0]))
    assert peaks[1]["own"] < peaks[0]["own"] / 4
    assert worst_window(images[1], images[0]) > 40


if __name__ == "__main__":
    reconstruct_alone(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
