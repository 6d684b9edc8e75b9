"""Tiles and slices from the command line and from `Pipeline`."""

import torch

from autoencoders import Tiling
from ldm.sampling.pipeline import Pipeline

SHORT = ["--device", "cpu", "--num-inference-steps", "2", "--num-images", "2", "--seed", "5"]


def test_sample_in_tiles_is_the_sample(ldm, models, tmp_path):
    for name, flags in {"whole": [], "tiles": ["--tile", 8, "--tile-overlap", 4], "slices": ["--slicing"]}.items():
        assert ldm("sample", models.text, *SHORT, *flags, "--output-dir", tmp_path / name).code == 0
    pipeline = Pipeline.load(models.text)
    latents = torch.randn(
        2, pipeline.networks.autoencoder.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    whole = pipeline.decode(latents)
    pipeline.tiling = Tiling(tile=8, tile_overlap=4)
    torch.testing.assert_close(pipeline.decode(latents), whole, rtol=0, atol=2e-2)
    latents = pipeline.encode(whole)
    pipeline.tiling = Tiling()
    torch.testing.assert_close(latents, pipeline.encode(whole), rtol=0, atol=2e-2)


def test_tiles_that_do_not_fit_are_refused(models, refused, tmp_path):
    base, out = ["sample", models.text, *SHORT, "--output-dir", tmp_path / "out"], tmp_path / "latents"
    refused([*base, "--tile", "7", "--tile-overlap", "0"], "--tile 7", "factor")
    refused([*base, "--tile", "0"], "--tile must be above 0")
    refused([*base, "--tile", "8"], "--tile-overlap 16", "at most --tile")
    encode = ["encode", "--data", "shapes", "--autoencoder", models.text, "--device", "cpu", "--output-dir", out]
    refused([*encode, "--tile", "17"], "--tile 17", "factor")
