"""How often a training evaluates its model, and how: the settings of an evaluation under the prefix `eval_`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.registry import metrics as registry
from ldm.runtime.errors import LARGEST_BATCH, LARGEST_SEED, UserError, at_least, in_range
from ldm.runtime.text import suggest
from ldm.runtime.values import check_values
from ldm.sampling.config import SamplingConfig
from samplers.guidance.base import MAX_SCALE
from samplers.level import MAX_TIMESTEPS


@dataclass(frozen=True)
class EvalConfig:
    """How often a training draws samples of the averaged weights, and what is measured of them."""

    eval_every: int = 0
    """Draw samples of the averaged weights and measure them every so many steps, and at the end; 0: never. The best
    model so far is in best/, the figures with their manifest in evaluations/."""
    eval_metrics: tuple[str, ...] = ("fid", "kid")
    """What is measured: fid, kid, precision, recall, ...; see `ldm evaluate --help`. Where the data has attributes or
    labels, a judge also measures how often the images show those of their condition."""
    eval_best_by: str = ""
    """Which of `eval_metrics` chooses the model in best/; unset: the first."""
    eval_num_images: int = 1000
    """Samples of an evaluation. Compare only figures of equal numbers."""
    eval_num_reference: int = 10000
    """Real images to compare with; drawn at random if there are more."""
    eval_split: Literal["validation", "train"] = "validation"
    """Which images of the data are the reference."""
    eval_guidance_scale: float | None = None
    """Guidance scale of these samples; 1 is the conditional model. Unset: the model's default, as in `ldm sample`."""
    eval_seed: int = 0
    """Seed of these samples and of the choice of conditions, the same at every step."""
    eval_batch_size: int = 64
    """Samples at a time."""
    eval_extractor: Literal["auto", "inception", "trained"] = "auto"
    """Features: inception, trained (a small network trained on the data set), auto: inception where its weights are."""
    eval_inception_weights: str | None = None
    """The file inception-2015-12-05.pt; default: where clean-fid keeps it."""

    def __post_init__(self) -> None:
        check_values(self)
        at_least(self, eval_every=0, eval_num_images=4, eval_num_reference=4)
        in_range(self, eval_batch_size=(1, LARGEST_BATCH), eval_seed=(0, LARGEST_SEED))
        in_range(self, eval_guidance_scale=(0, MAX_SCALE))
        if not self.eval_metrics:
            raise UserError(f"expected one or more of {', '.join(_metrics())}", setting="eval_metrics")
        for name in self.eval_metrics:
            if name not in registry.names() or not _allowed(name):
                raise UserError(f"unknown metric {name!r}", remedy=suggest(name, _metrics()), setting="eval_metrics")
        if self.eval_best_by and self.eval_best_by not in self.eval_metrics:
            known = suggest(self.eval_best_by, self.eval_metrics)
            raise UserError("not one of `eval_metrics`", setting="eval_best_by", value=self.eval_best_by, remedy=known)

    @property
    def best_by(self) -> str:
        """The metric that chooses the best model."""
        return self.eval_best_by or self.eval_metrics[0]

    def sampling(self) -> SamplingConfig:
        """How the samples are drawn."""
        return SamplingConfig(guidance_scale=self.eval_guidance_scale)

    def evaluation(self) -> EvaluationConfig:
        """The same settings as `ldm evaluate` has them, without intervals, which choose nothing."""
        own = asdict(self)
        shared = {f.name: own[f"eval_{f.name}"] for f in fields(EvaluationConfig) if f"eval_{f.name}" in own}
        return EvaluationConfig(**shared, bootstrap=0)


def _allowed(name: str) -> bool:
    """Whether a metric can be measured in training: of samples, without CLIP, which is too large there."""
    info = registry.info(name)
    return info.of_samples and "captions" not in info.needs


def _metrics() -> tuple[str, ...]:
    return tuple(name for name in registry.names() if _allowed(name))


@dataclass(frozen=True)
class DiffusionEvalConfig(EvalConfig):
    """As `EvalConfig`, with the sampler of a diffusion model."""

    eval_sampler: str = "ddim"
    """Sampler of these samples."""
    eval_num_inference_steps: int = 25
    """Sampling steps of these samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, eval_num_inference_steps=(1, MAX_TIMESTEPS))

    def sampling(self) -> SamplingConfig:
        return replace(super().sampling(), sampler=self.eval_sampler, num_inference_steps=self.eval_num_inference_steps)
