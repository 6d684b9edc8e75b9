"""Which guidance methods to compare, at which scales."""

from dataclasses import dataclass

from ldm.comparison.methods import check_method
from ldm.errors import UserError


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
    rows: int = 8
    """Samples of each method shown in the picture."""

    def __post_init__(self) -> None:
        for name in self.methods:
            check_method(name)
        if self.rows < 1:
            raise UserError(f"--rows: expected 1 or more, got {self.rows}")
        for flag, scales in (("guidance", self.guidance_scales), ("classifier", self.classifier_scales)):
            if not scales:
                raise UserError(f"--{flag}-scales: expected one scale or more, got none")
            if any(not scale >= 0 for scale in scales):
                raise UserError(f"--{flag}-scales: expected scales of 0 or more, got {', '.join(map(str, scales))}")
