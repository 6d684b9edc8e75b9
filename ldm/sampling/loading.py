"""Any folder that draws images, as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autoencoders import Generator
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError, user_errors
from ldm.sampling.code_prior import CodePriorModel, holds_prior
from ldm.sampling.config import INSTEAD, WITHOUT_DIFFUSION
from ldm.sampling.image_model import ImageModel
from ldm.sampling.model_folder import Classifiers, read_autoencoder
from ldm.sampling.model_manifest import check_manifest
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.publication import reading
from ldm.sampling.single_pass import AutoencoderPrior, NoiseGenerator


def load_model(
    folder: str | Path,
    *,
    device: torch.device | str = "auto",
    classifier: Classifiers | None = None,
    weak: str | Path | None = None,
    ignore_manifest: bool = False,
) -> ImageModel[Any]:
    """The model of a folder: a diffusion pipeline, a prior over codes, a VAE or the generator of a GAN.

    `classifier` and `weak` are as in `Pipeline.load`, for diffusion alone, and so is `ignore_manifest`. `UserError` for
    a folder that draws nothing, such as that of an autoencoder without a prior of its own, and for a damaged one.
    """
    with reading(folder):
        model = _without_diffusion(Path(folder), resolve_device(device), ignore_manifest)
    if model is None:
        return Pipeline.load(folder, device=device, classifier=classifier, weak=weak, ignore_manifest=ignore_manifest)
    if classifier or weak:
        raise UserError(WITHOUT_DIFFUSION, remedy=INSTEAD, setting="classifier" if classifier else "weak")
    return model


def _without_diffusion(root: Path, device: torch.device, ignore_manifest: bool) -> ImageModel[Any] | None:
    """The model of a folder that draws without diffusion; None for a folder that is not of that kind."""
    if holds_prior(root):
        return CodePriorModel.load(root, device, ignore_manifest=ignore_manifest)
    if (root / "unet").exists() or (root / "model_index.json").exists():
        return None
    if (root / "generator").is_dir():
        with user_errors(root):
            generator = Generator.from_pretrained(root / "generator")
        check_manifest(root, ("generator",), ignore=ignore_manifest)
        return NoiseGenerator(generator, device)
    vae = root / "vae" if (root / "vae").is_dir() else root
    if not (vae / "config.json").is_file():
        return None
    with user_errors(root):
        autoencoder = read_autoencoder(vae, ignore_manifest=ignore_manifest)
    config = autoencoder.config
    if not autoencoder.has_prior:
        more = "`ldm train prior` or `ldm train diffusion`" if config.codebook_sizes else "`ldm train diffusion`"
        problem = f"{root}: an autoencoder without a prior of its own ({config.bottleneck})"
        raise UserError(problem, remedy=f"{more} gives it one")
    if config.sample_size is None:
        remedy = "write the side of its images in pixels there"
        raise UserError(f"{root}: its config.json has no sample_size", remedy=remedy)
    return AutoencoderPrior(autoencoder, config.sample_size, device)
