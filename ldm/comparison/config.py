"""Which guidance methods to compare, at which scales."""

from dataclasses import dataclass

from ldm.evaluation.config import APPEARANCE
from ldm.runtime.errors import TINY, UserError, in_range, user_errors
from ldm.runtime.text import suggest
from ldm.runtime.values import check_values
from samplers import get_sampler, parse_guidance, parse_sampler
from samplers.guidance.base import MAX_SCALE
from samplers.level import MAX_TIMESTEPS

METRICS_OF_COMPARISONS = ("fid", "kid", "precision", "recall", "coverage", *APPEARANCE)
METHODS = {
    "unconditional": "the conditions dropped: what guidance starts from",
    "none": "the model's own conditional prediction",
    "cfg": "classifier-free guidance",
    "classifier": "classifier guidance of the unconditional prediction (of the conditional one without dropout)",
    "cfg+classifier": "both",
}


@dataclass(frozen=True)
class ComparisonConfig:
    """Which guidance methods to compare, at which scales; all on the same seeds and the same conditions."""

    methods: tuple[str, ...] = ()
    """unconditional, none, cfg, classifier, cfg+classifier, or any guidance of `ldm list guidances` with its options,
    such as "autoguidance(2)", or several with " + " between: "cfg(7.5) + rescale(0.7)"; default: those of the five
    that the model supports."""
    guidance_scales: tuple[float, ...] = (1.5, 3.0, 7.5)
    """Scales of classifier-free guidance."""
    classifier_scales: tuple[float, ...] = (1.0, 4.0)
    """Scales of classifier guidance."""
    samplers: tuple[str, ...] = ()
    """Samplers under which every method is tried, such as ddim "dpmpp_2m"; default: `sampler` alone."""
    steps: tuple[int, ...] = ()
    """Numbers of steps at which every method is tried; default: `num_inference_steps` alone."""
    decide_by: str = ""
    """The metric that decides which run is the best: one of `metrics`, or an accuracy of the judge such as
    accuracy/class or accuracy/shape; unset: the first of `metrics`."""
    budget_evaluations: float | None = None
    """Name the best method among those that need at most so many network evaluations an image."""
    budget_seconds: float | None = None
    """Name the best method among those that took at most so many seconds an image here."""
    rounds: int = 1
    """More than 1: successive halving. The first round draws few samples of every run; in each later round the better
    half, and whatever is not distinguished from the best by its 95 % interval, gets twice as many, up to `num_images`
    in the last."""
    save_default: bool = False
    """Make the winner's sampler, steps and guidance what the model folder samples with by default."""
    rows: int = 8
    """Samples of each method on the image and in the report."""

    def __post_init__(self) -> None:
        check_values(self)
        for method in self.methods:
            check_method(method)
        for sampler in self.samplers:
            check_sampler(sampler)
        in_range(self, steps=(1, MAX_TIMESTEPS), budget_evaluations=(TINY, 1e15), budget_seconds=(TINY, 1e9))
        in_range(self, rounds=(1, 30), rows=(1, 4096))
        for name in ("guidance_scales", "classifier_scales"):
            if not getattr(self, name):
                raise UserError("expected one scale or more, got none", setting=name)
        in_range(self, guidance_scales=(0, MAX_SCALE), classifier_scales=(0, MAX_SCALE))


def check_method(method: str) -> None:
    """`UserError` unless it is one of METHODS or guidances with options: "pag(3)", "cfg(7.5) + rescale(0.7)"."""
    if method in METHODS:
        return
    if "(" not in method:
        remedy = f'{suggest(method, METHODS)}, or a guidance such as "pag(3)"'
        raise UserError(f"unknown method {method!r}", remedy=remedy, setting="methods")
    with user_errors(setting="methods"):
        for guidance in split_guidances(method):
            parse_guidance(guidance)


def check_sampler(sampler: str) -> None:
    """`UserError` unless it is a registered sampler, with options or without."""
    with user_errors(setting="samplers"):
        get_sampler(parse_sampler(sampler)[0])


def split_guidances(method: str) -> tuple[str, ...]:
    """The guidances of a method that is none of METHODS: those between its " + "."""
    return tuple(guidance.strip() for guidance in method.split(" + "))
