"""Bits of the codes of held-out images under a prior."""

from __future__ import annotations

import torch

from ldm.evaluation.conditions import balanced_indices, conditions_of
from ldm.evaluation.metrics.base import MetricResult, ModelEvaluation, ModelMetric
from ldm.evaluation.records import MetricValue
from ldm.evaluation.registry import metrics
from ldm.sampling.code_prior import CodePriorModel, bits_of_codes


@metrics.register("bits_per_code")
class BitsPerCode(ModelMetric):
    """The bits are those of the codes alone: the decoder promises nothing of pixels."""

    @torch.no_grad()
    def measure(self, evaluation: ModelEvaluation) -> MetricResult:
        """Bits a code and a pixel of images of the data, chosen by the seed, with standard errors, and log2 K.

        Under the images' conditions, and once more under the null condition where there are any.
        """
        model, data, config = evaluation.model, evaluation.data, evaluation.context.config
        assert isinstance(model, CodePriorModel)
        count = min(config.num_images, len(data))
        indices, levels = balanced_indices(data, count, config.seed), model.priors.shape.levels
        parts = []
        for start in range(0, count, config.batch_size):
            images = torch.stack([data[index].image for index in indices[start : start + config.batch_size]])
            parts.append(model.autoencoder.codes(images.to(model.device)))
        codes = [torch.cat([part[level] for part in parts]) for level in range(len(levels))]
        requests = conditions_of(model, data, indices)
        positions, pixels = sum(level.length for level in levels), model.image_size**2
        figures = []
        for null in (False, True) if model.has_classes or model.has_text else (False,):
            bits = bits_of_codes(model.priors, model.conditioner, codes, requests, null=null)  # (N, levels)
            suffix = "[null]" if null else ""
            figures.append(_figure(f"bits_per_code{suffix}", bits.sum(1) / positions))
            for level, grid in enumerate(levels) if len(levels) > 1 else ():
                figures.append(_figure(f"bits_per_code[level {level}]{suffix}", bits[:, level] / grid.length))
            if not null:
                figures.append(_figure("bits_per_pixel", bits.sum(1) / pixels))
        figures.append(MetricValue("bits_per_code", "bits_per_code[uniform]", model.priors.shape.uniform_bits))
        about = {"data": data.name, "split": data.split, "data_fingerprint": data.fingerprint, "seed": config.seed}
        return MetricResult(tuple(figures), about=about | {"num_reference": count})


def _figure(name: str, values: torch.Tensor) -> MetricValue:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return MetricValue(name.split("[")[0], name, float(values.mean()), error)
