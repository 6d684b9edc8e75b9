"""Bits per dimension of held-out images: the variational bound, and the density by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.conditions import conditions_of
from ldm.evaluation.config import LikelihoodConfig
from ldm.evaluation.metrics.base import MetricContext, MetricResult, ModelEvaluation, ModelMetric
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics
from ldm.runtime.errors import UserError
from ldm.runtime.progress import progress
from ldm.sampling.pipeline import Pipeline
from samplers import Level, SampleNoise, bits_per_dim, flow_log_likelihood, guide, make_levels, variational_bound

_BINS = 256  # values of a pixel's channel


@metrics.register("bits_per_dim")
class BitsPerDim(ModelMetric):
    def check(self, context: MetricContext) -> None:
        super().check(context)
        sampling = context.sampling
        guided = sampling.guidance_scale not in (None, 1) or sampling.classifier_scale or sampling.guidance
        if context.config.without_samples and guided:
            raise self.refusal("is the model's own", "a guided sampler has no density, leave guidance off")

    def measure(self, evaluation: ModelEvaluation) -> MetricResult:
        model, data, config = evaluation.model, evaluation.data, evaluation.context.config
        assert isinstance(model, Pipeline)
        bits = measure_likelihood(model, data, evaluation.likelihood, seed=config.seed, batch_size=config.batch_size)
        about = {"split": data.split, "image_size": data.image_size, "data": data.name}
        about |= {"data_fingerprint": data.fingerprint, "seed": config.seed}
        return MetricResult(bits.figures, {"likelihood": bits.manifest}, about)


def measure_likelihood(
    pipeline: Pipeline, data: ImageData, config: LikelihoodConfig, *, seed: int = 0, batch_size: int = 64
) -> MetricResult:
    """Bits per dimension, with standard errors over images, of images of `data` under their own captions or classes.

    Of a model of pixels: of the 8-bit values, by the bound with the discretised decoder (Ho et al. 2020, eq. 13), by
    the ODE as a density of (value + u) / 128 - 1, u uniform in [0, 1), times the width of a bin (Theis et al. 2016;
    Song et al. 2021, arXiv:2011.13456, section 4.3). Of a model of latents: of the density of calibrated latents drawn
    from the encoder's posterior (the mean of an encoder without one). This can be negative, and is comparable under
    the same autoencoder alone. Neither is guided: a guided sampler has no density of its own. In float32.

    `UserError` for a schedule that ends in pure noise, and for conditions that `data` cannot give.
    """
    all_steps = {"bound": config.bound_steps, "flow": config.flow_steps}
    levels = {name: _levels(pipeline, steps) for name, steps in all_steps.items() if steps}
    count = min(config.likelihood_images, len(data))
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(data))[:count].tolist()
    requests = conditions_of(pipeline, data, chosen)
    pixels = pipeline.networks.autoencoder.is_identity
    nats: dict[str, list[Tensor]] = {}  # figure: -log p or a term of it, (b,) each
    evaluations, dimensions = 0, 0
    for start in progress(range(0, count, batch_size), "likelihood (batches)"):
        rows = range(start, min(start + batch_size, count))
        images = torch.stack([data[chosen[row]].image for row in rows])  # (b, 3, H, W)
        with torch.no_grad():
            denoiser = pipeline.denoiser([requests[row] for row in rows])
        denoiser.autocast = None
        denoise = guide(denoiser)
        noise = SampleNoise(seed, rows, "likelihood")
        x0 = _data(pipeline, images, noise)  # (b, C, h, w)
        dimensions = x0[0].numel()
        if "bound" in levels:
            with torch.no_grad():
                bound = variational_bound(denoise, x0, levels["bound"], noise=noise, bins=_BINS if pixels else None)
            for term in ("total", "prior", "diffusion", "reconstruction"):
                nats.setdefault("bound" if term == "total" else f"bound/{term}", []).append(getattr(bound, term).cpu())
        if "flow" in levels:
            y = _dequantised(images, noise).to(x0) if pixels else x0
            probes = _probes(seed, rows, y, config.flow_probes)
            log_p = flow_log_likelihood(denoise, y, levels["flow"][::-1], probes=probes)
            nats.setdefault("flow", []).append(-log_p.cpu())
        evaluations += denoiser.evaluations
    figures = tuple(_figure(name, torch.cat(parts).double(), dimensions, pixels) for name, parts in nats.items())
    manifest = {
        "likelihood_images": count,
        "dimensions": dimensions,
        "dimensions_are": f"{'x'.join(map(str, x0.shape[1:]))} of {'pixels' if pixels else 'latents'}",
        "bits_of": f"{_BINS} values a pixel and channel" if pixels else "density of calibrated latents",
        **{name: asdict(config)[name] for name in ("bound_steps", "flow_steps", "flow_probes")},
        "guidance": "none",
        "evaluations_per_image": evaluations / count,
    }
    return MetricResult(figures, manifest)


def _levels(pipeline: Pipeline, steps: int) -> tuple[Level, ...]:
    """From the noisiest level to that of t = 0; the flow takes them the other way round."""
    try:
        return make_levels(pipeline.networks.process.schedule, steps, "log_snr", final="first")
    except ValueError as error:
        raise UserError(f"{error}", setting="metrics", value="bits_per_dim") from None


def _data(pipeline: Pipeline, images: Tensor, noise: SampleNoise) -> Tensor:
    """What the model models: pixels, or latents drawn from the posterior; float32 on the device."""
    with torch.no_grad():
        encoding = pipeline.networks.autoencoder.encode(images.to(pipeline.device))
    latents = encoding.mean.float()
    if encoding.std is None:
        return latents
    draws = SampleNoise(noise.seed, noise.indices, "posterior")
    return latents + encoding.std.float() * draws.initial(latents.shape[1:], latents.dtype, latents.device)


def _dequantised(images: Tensor, noise: SampleNoise) -> Tensor:
    """8-bit values of images in [-1, 1], as (value + u) / 128 - 1 with u uniform in [0, 1)."""
    values = ((images + 1) * 127.5).round()
    normal = SampleNoise(noise.seed, noise.indices, "dequantisation").initial(images.shape[1:], torch.float64)
    return (values + torch.special.ndtr(normal)) / 128 - 1


def _probes(seed: int, rows: Sequence[int], like: Tensor, count: int) -> list[Tensor]:
    """Random signs, one stream an image and probe."""
    draws = (SampleNoise(seed, rows, f"probe {k}").initial(like.shape[1:]) for k in range(count))
    return [torch.where(normal > 0, 1.0, -1.0).to(like) for normal in draws]


def _figure(name: str, nats: Tensor, dimensions: int, pixels: bool) -> MetricValue:
    # the bound's decoder gives probabilities already; the flow's density is read over a bin of the values
    bits = bits_per_dim(nats, dimensions, bins=_BINS if pixels and name == "flow" else None)
    error = float(bits.std()) / math.sqrt(len(bits))
    kind, _, term = name.partition("/")
    title = f"bits/dim[{'8-bit pixels' if pixels else 'latent density'}, {kind}]" + (f" {term}" if term else "")
    return MetricValue(f"bits_per_dim/{name}", title, float(bits.mean()), error)
