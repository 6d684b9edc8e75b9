"""The guidance methods by name: what each needs of a model, and the sampling settings that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ldm.data.dataset import ImageData
from ldm.runtime.errors import UserError
from ldm.runtime.files import fingerprint
from ldm.runtime.text import suggest
from ldm.sampling.config import SamplingConfig
from ldm.sampling.pipeline import Pipeline
from samplers import get_sampler, parse_guidance, parse_sampler

METHODS = {
    "unconditional": "the conditions dropped: what guidance starts from",
    "none": "the model's own conditional prediction",
    "cfg": "classifier-free guidance",
    "classifier": "classifier guidance of the unconditional prediction (of the conditional one without dropout)",
    "cfg+classifier": "both",
}


def check_method(name: str) -> None:
    """`UserError` unless it is one of METHODS or guidances with options: "pag(3)", "cfg(7.5) + rescale(0.7)"."""
    if name in METHODS:
        return
    if "(" not in name:
        raise UserError(
            f"unknown method {name!r}",
            remedy=f'{suggest(name, METHODS)}, or a guidance such as "pag(3)"',
            setting="methods",
        )
    try:
        for text in together(name):
            parse_guidance(text)
    except ValueError as error:
        raise UserError(f"{error}", setting="methods") from None


def check_sampler(text: str) -> None:
    """`UserError` unless it is a registered sampler, with options or without."""
    try:
        get_sampler(parse_sampler(text)[0])
    except ValueError as error:
        raise UserError(f"{error}", setting="samplers") from None


def together(method: str) -> tuple[str, ...]:
    """The guidances of a method that is none of METHODS: those between its " + "."""
    return tuple(text.strip() for text in method.split(" + "))


@dataclass(frozen=True, slots=True)
class Variant:
    """One cell of a comparison: a method at its scales, under a sampler with its number of steps."""

    method: str
    sampling: SamplingConfig
    guidance_scale: float | None = None  # None: the method has no such scale
    classifier_scale: float | None = None
    under: str = ""  # the sampler and steps, where a comparison has several

    @property
    def label(self) -> str:
        """`cfg 7.5`, `cfg+classifier 3, 4 | dpmpp_2m 20`."""
        scales = [f"{scale:g}" for scale in (self.guidance_scale, self.classifier_scale) if scale is not None]
        label = " ".join([self.method, ", ".join(scales)]).strip()
        return f"{label} | {self.under}" if self.under else label

    @property
    def slug(self) -> str:
        """A file name that tells apart all that the cell's pictures depend on."""
        scales = [f"{scale:g}" for scale in (self.guidance_scale, self.classifier_scale) if scale is not None]
        name = self.method.split("(")[0].strip().replace("+", "-")
        return "-".join([name, *scales, fingerprint(asdict(self.sampling))[:12]])


def why_not(method: str, pipeline: Pipeline, data: ImageData) -> str | None:
    """Why this model cannot do the method, or None if it can."""
    if method in ("unconditional", "cfg", "cfg+classifier") and not pipeline.networks.condition_dropout:
        if not (pipeline.has_text or pipeline.has_classes):
            return (
                "the model is unconditional" if method != "unconditional" else 'that is what "none" does for this model'
            )
        return "the model was trained without condition dropout, so it has no unconditional prediction"
    if method in ("classifier", "cfg+classifier"):
        if not pipeline.networks.classifiers:
            return "the model has no classifier"
        if not data.class_names:
            return f"{data.name} has no class labels to guide towards"
        if tuple(data.class_names) != tuple(pipeline.class_names):
            return f"the classes of {data.name} are not those of the classifier"
    return None


def variants(
    method: str,
    pipeline: Pipeline,
    base: SamplingConfig,
    guidance_scales: Sequence[float],
    classifier_scales: Sequence[float],
) -> list[Variant]:
    """The cells of one method; combined methods take every pair of scales."""
    if method not in METHODS:
        return [Variant(method, replace(base, guidance=(*base.guidance, *together(method))))]
    if method in ("unconditional", "none"):
        return [Variant(method, replace(base, guidance_scale=float(method == "none")))]
    if method == "cfg":
        return [Variant(method, replace(base, guidance_scale=g), g) for g in guidance_scales]
    if method == "classifier":
        start = 0.0 if pipeline.networks.condition_dropout else 1.0
        return [
            Variant(method, replace(base, guidance_scale=start, classifier_scale=c), None, c) for c in classifier_scales
        ]
    return [
        Variant(method, replace(base, guidance_scale=g, classifier_scale=c), g, c)
        for g in guidance_scales
        for c in classifier_scales
    ]


def plan(
    methods: Sequence[str],
    pipeline: Pipeline,
    data: ImageData,
    base: SamplingConfig,
    guidance_scales: Sequence[float],
    classifier_scales: Sequence[float],
    samplers: Sequence[str] = (),
    steps: Sequence[int] = (),
) -> tuple[list[Variant], dict[str, str]]:
    """All cells, each setting once, and the methods left out with the reason: methods x scales x samplers x steps.

    A method that was asked for by name is never left out: `UserError` says why it cannot be done.
    """
    if base.guidance_scale != 1 or base.classifier_scale != 0:
        raise UserError(
            "a comparison sets the scales itself", remedy="give them as `guidance_scales` and `classifier_scales`"
        )
    cells: list[Variant] = []
    left_out: dict[str, str] = {}
    for method in methods or METHODS:
        reason = why_not(method, pipeline, data)
        if reason is not None and methods:
            raise UserError(f"{reason}", setting="methods", value=method)
        if reason is not None:
            left_out[method] = reason
            continue
        for variant in variants(method, pipeline, base, guidance_scales, classifier_scales):
            if all(variant.sampling != cell.sampling for cell in cells):
                cells.append(variant)
    ways = [(name, n) for name in samplers or (base.sampler,) for n in steps or (base.num_inference_steps,)]
    if len(ways) < 2 and not (samplers or steps):
        return cells, left_out
    return [_under(cell, *way, told=len(ways) > 1) for way in dict.fromkeys(ways) for cell in cells], left_out


def _under(cell: Variant, sampler: str, steps: int, told: bool) -> Variant:
    sampling = replace(cell.sampling, sampler=sampler, num_inference_steps=steps)
    return replace(cell, sampling=sampling, under=f"{sampler} {steps}" if told else "")
