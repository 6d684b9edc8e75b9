"""Saturation, contrast, clipped values and sharpness of samples, beside those of real images."""

from __future__ import annotations

from dataclasses import replace

from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.appearance import MEASURES
from ldm.evaluation.metrics.base import SampleMetric, Samples
from ldm.evaluation.records import Estimate, MetricValue
from ldm.evaluation.registry import metrics


class AppearanceMetric(SampleMetric):
    """The mean of one measure over the samples, see `Appearance`; the nearer to that of real images the better."""

    def measure(self, samples: Samples, config: EvaluationConfig) -> MetricValue:
        if samples.appearance is None:
            raise self.refusal("needs the images themselves, and a reference file holds none")
        values = samples.appearance[:, MEASURES.index(self.name)].double()
        mean = Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))
        halves = [float(values[half.to(values.device)].mean()) for half in samples.halves(config)]
        return replace(self.value(samples, mean, halves, name=self.name), directed=False)


for _name in MEASURES:
    metrics.register(_name)(type(f"{_name.capitalize()}Metric", (AppearanceMetric,), {"__module__": __name__}))
