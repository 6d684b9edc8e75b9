"""Images as the beginning of sampling: image to image, inpainting, and DDIM inversion with re-generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.runtime.errors import UserError
from ldm.sampling.config import MAX_ITERATIONS, Request, ResolvedSampling, SamplingConfig, Unmasked, check_strength
from ldm.sampling.finite import NonFiniteSamplesError, are_finite
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.start import Start
from samplers import ddim, ddim_inversion, guide
from samplers.level import short_repr


@dataclass(frozen=True, eq=False)
class Edit:
    """What `Pipeline.generate(start=...)` begins from, and what is done to its images (B, 3, H, W) at the end."""

    start: Start
    finish: Callable[[Tensor], Tensor]

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Inversion:
    """The noise of an image, and how well it leads back. Images are (3, H, W) in [-1, 1]."""

    start: Start
    reconstruction: Tensor  # drawn again from the noise, under the condition of the inversion
    plain: Tensor  # what the autoencoder alone makes of the image
    evaluations: int

    __repr__ = short_repr


def image_to_image(
    pipeline: Pipeline,
    pixels: Tensor,
    sampling: SamplingConfig,
    strength: float,
    *,
    mask: Tensor | None = None,
    unmasked: Unmasked = "reconstruction",
) -> Edit:
    """Begin from an image (3, H, W) with noise, at `strength` in (0, 1] of the sampler's steps (at least one).

    At 1 the image has no effect: samples are those of pure noise. With `mask` (1, H, W), 1 to repaint, the latents
    that no pixel to repaint touches are kept, and the pixels to keep come from the plain reconstruction in the end, or
    from the original. Raises `UserError` for a strength out of range.
    """
    check_strength(strength)
    latents = pipeline.encode(pixels[None])[0]  # (C, h, w)
    steps = max(1, round(strength * pipeline.with_defaults(sampling).num_inference_steps))
    if mask is None:
        return Edit(Start(latents, steps, pure=strength == 1), lambda images: images)
    repaint = torch.nn.functional.max_pool2d(mask, pipeline.networks.autoencoder.factor).to(latents)  # (1, h, w)
    outside = (pipeline.decode(latents[None])[0] if unmasked == "reconstruction" else pixels).to(pipeline.device)
    inside = mask.to(pipeline.device) > 0
    start = Start(latents, steps, pure=strength == 1, repaint=repaint)
    return Edit(start, lambda images: torch.where(inside, images, outside))


def invert(
    pipeline: Pipeline, pixels: Tensor, source: Request, sampling: SamplingConfig, *, iterations: int = 3
) -> Inversion:
    """The noise from which `ddim` draws an image (3, H, W) again under the condition `source`, without guidance.

    Over the levels of `sampling`, with `iterations` of the fixed point a step (see `samplers.ddim_inversion`). Raises
    `UserError` as `Pipeline.check`, and for a schedule that ends in pure noise, which keeps nothing.
    """
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise UserError(f"expected 1 to {MAX_ITERATIONS}, got {iterations}", setting="inversion_iterations")
    if source.class_label is None and pipeline.has_classes and pipeline.networks.condition_dropout == 0:
        remedy = "name the class of the image with `source_class`"
        raise UserError("this model has no null class", remedy=remedy, setting="invert")
    steps = pipeline.with_defaults(sampling).num_inference_steps
    plan = pipeline.resolve(ResolvedSampling(num_inference_steps=steps, spacing=sampling.spacing))
    pipeline.check([source], plan)
    levels = plan.levels
    if levels[0].alpha == 0:
        raise UserError("this model's schedule ends in pure noise, which keeps nothing of an image", setting="invert")
    latents = pipeline.encode(pixels[None])  # (1, C, h, w)
    with torch.no_grad():
        denoiser = pipeline.denoiser([source], plan)
        denoise, x = guide(denoiser), latents
        for step in ddim_inversion(denoise, x, levels[::-1], iterations=iterations):
            x = step.x
        noise = x
        for step in ddim(denoise, x, levels):
            x = step.x
    if not are_finite(noise, x):
        raise NonFiniteSamplesError("the noise of this image is not finite numbers under this model", setting="invert")
    start = Start(noise[0], steps, inverted=True)
    return Inversion(start, pipeline.decode(x)[0], pipeline.decode(latents)[0], denoiser.evaluations)
