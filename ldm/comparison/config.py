"""Which guidance methods to compare, at which scales."""

from dataclasses import dataclass

from ldm.comparison.methods import check_method, check_sampler
from ldm.runtime.errors import UserError, at_least

METRICS_OF_COMPARISONS = ("fid", "kid", "precision", "recall", "coverage")


@dataclass(frozen=True)
class ComparisonConfig:
    """Which guidance methods to compare, at which scales; all on the same seeds and the same conditions."""

    methods: tuple[str, ...] = ()
    """unconditional, none, cfg, classifier, cfg+classifier, or any guidance of `ldm list guidances` with its options,
    such as "autoguidance(2)", or several with " + " between: "cfg(7.5) + rescale(0.7)"; none given: those of the five
    that the model can do."""
    guidance_scales: tuple[float, ...] = (1.5, 3.0, 7.5)
    """Scales of classifier-free guidance."""
    classifier_scales: tuple[float, ...] = (1.0, 4.0)
    """Scales of classifier guidance."""
    samplers: tuple[str, ...] = ()
    """Samplers under which every method is tried, such as ddim "dpmpp_2m"; none given: `sampler` alone."""
    steps: tuple[int, ...] = ()
    """Numbers of steps at which every method is tried; none given: `num_inference_steps` alone."""
    budget_evaluations: float | None = None
    """Name the best method among those that need at most so many network evaluations an image."""
    budget_seconds: float | None = None
    """Name the best method among those that took at most so many seconds an image here."""
    rounds: int = 1
    """More than 1: successive halving. Of all cells few samples are drawn at first; round by round the better half, and
    whatever is not told from the best by its 95 % interval, gets twice as many, up to `num_images` in the last."""
    rows: int = 8
    """Samples of each method shown in the picture."""

    def __post_init__(self) -> None:
        for name in self.methods:
            check_method(name)
        for text in self.samplers:
            check_sampler(text)
        if any(steps < 1 for steps in self.steps):
            raise UserError(f"expected 1 or more, got {', '.join(map(str, self.steps))}", setting="steps")
        for name in ("budget_evaluations", "budget_seconds"):
            if (budget := getattr(self, name)) is not None and not budget > 0:
                raise UserError(f"expected a number above 0, got {budget}", setting=name)
        at_least(self, rounds=1, rows=1)
        for flag, scales in (("guidance", self.guidance_scales), ("classifier", self.classifier_scales)):
            if not scales:
                raise UserError("expected one scale or more, got none", setting=f"{flag}_scales")
            if any(not scale >= 0 for scale in scales):
                raise UserError(
                    f"expected scales of 0 or more, got {', '.join(map(str, scales))}", setting=f"{flag}_scales"
                )
