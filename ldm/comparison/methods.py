"""The variants of a comparison: methods x scales x samplers x steps, as far as the model supports them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ldm.comparison.config import METHODS, ComparisonConfig, split_guidances
from ldm.data.dataset import ImageData
from ldm.runtime.errors import UserError
from ldm.runtime.files import fingerprint
from ldm.sampling.config import ResolvedSampling
from ldm.sampling.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Variant:
    """A method at its scales, under a sampler with its number of steps."""

    method: str
    sampling: ResolvedSampling
    guidance_scale: float | None = None  # None: the method has no such scale
    classifier_scale: float | None = None
    solver: str = ""  # the sampler and steps, where a comparison has several

    @property
    def label(self) -> str:
        """`cfg 7.5`, `cfg+classifier 3, 4 | dpmpp_2m 20`."""
        label = " ".join([self.method, ", ".join(self._scales)]).strip()
        return f"{label} | {self.solver}" if self.solver else label

    @property
    def slug(self) -> str:
        """A file name that is unique to all that the samples depend on."""
        name = self.method.split("(")[0].strip().replace("+", "-")
        return "-".join([name, *self._scales, fingerprint(asdict(self.sampling))[:12]])

    @property
    def _scales(self) -> list[str]:
        return [f"{scale:g}" for scale in (self.guidance_scale, self.classifier_scale) if scale is not None]


def unsupported_reason(method: str, pipeline: Pipeline, data: ImageData) -> str | None:
    """Why this model does not support the method, or None if it does."""
    if method in ("unconditional", "cfg", "cfg+classifier") and not pipeline.networks.condition_dropout:
        if not (pipeline.has_text or pipeline.has_classes):
            same = 'that is what "none" does for this model'
            return same if method == "unconditional" else "the model is unconditional"
        return "the model was trained without condition dropout, so it has no unconditional prediction"
    if method in ("classifier", "cfg+classifier"):
        if not pipeline.networks.classifiers:
            return "the model has no classifier"
        if not data.class_names:
            return f"{data.name} has no class labels to guide towards"
        if tuple(data.class_names) != tuple(pipeline.class_names):
            return f"the classes of {data.name} are not those of the classifier"
    return None


def plan_variants(
    config: ComparisonConfig, pipeline: Pipeline, data: ImageData, sampling: ResolvedSampling
) -> tuple[list[Variant], dict[str, str]]:
    """All variants of `sampling`, each setting once, and the methods left out with the reason.

    A method of `config` is never left out: `UserError` says why the model does not support it.
    """
    if sampling.guidance_scale != 1 or sampling.classifier_scale != 0:
        remedy = "give them as `guidance_scales` and `classifier_scales`"
        raise UserError("a comparison sets the scales itself", remedy=remedy)
    variants: list[Variant] = []
    left_out: dict[str, str] = {}
    for method in config.methods or METHODS:
        reason = unsupported_reason(method, pipeline, data)
        if reason is not None and config.methods:
            raise UserError(f"{reason}", setting="methods", value=method)
        if reason is not None:
            left_out[method] = reason
            continue
        for variant in _scaled(method, config, pipeline, sampling):
            if all(variant.sampling != other.sampling for other in variants):
                variants.append(variant)
    if not (config.samplers or config.steps):
        return variants, left_out
    samplers, steps = config.samplers or (sampling.sampler,), config.steps or (sampling.num_inference_steps,)
    solvers = list(dict.fromkeys((sampler, n) for sampler in samplers for n in steps))
    named = len(samplers) * len(steps) > 1
    return [_with_solver(variant, *solver, named=named) for solver in solvers for variant in variants], left_out


def _scaled(method: str, config: ComparisonConfig, pipeline: Pipeline, sampling: ResolvedSampling) -> list[Variant]:
    """The variants of one method; "cfg+classifier" takes every pair of scales."""
    if method not in METHODS:
        return [Variant(method, replace(sampling, guidance=(*sampling.guidance, *split_guidances(method))))]
    if method in ("unconditional", "none"):
        return [Variant(method, replace(sampling, guidance_scale=float(method == "none")))]
    if method == "cfg":
        return [Variant(method, replace(sampling, guidance_scale=g), g) for g in config.guidance_scales]
    if method == "classifier":
        base = replace(sampling, guidance_scale=0.0 if pipeline.networks.condition_dropout else 1.0)
        return [Variant(method, replace(base, classifier_scale=c), None, c) for c in config.classifier_scales]
    return [
        Variant(method, replace(sampling, guidance_scale=g, classifier_scale=c), g, c)
        for g in config.guidance_scales
        for c in config.classifier_scales
    ]


def _with_solver(variant: Variant, sampler: str, steps: int, *, named: bool) -> Variant:
    sampling = replace(variant.sampling, sampler=sampler, num_inference_steps=steps)
    return replace(variant, sampling=sampling, solver=f"{sampler} {steps}" if named else "")
