"""The settings of the conditioning."""

from dataclasses import asdict, dataclass
from typing import Any

from ldm.runtime.errors import UserError, in_range

_LARGEST_ENCODER = 2**28  # about 3e9 parameters

CONDITIONING_FILE = "conditioning.json"  # of a model folder


@dataclass(frozen=True)
class ConditioningConfig:
    """What the model is conditioned on, and how often the condition is left out in training."""

    condition_dropout: float = 0.1
    """Probability, for each sample, of training on the null condition; guidance needs more than 0."""
    text_encoder: str | None = "auto"
    """embedded: a small CLIP text model, trained jointly. auto: that, where the data has captions. None: no text.
    Else a frozen CLIP or T5: its folder or its name on the hub."""
    class_conditional: bool | None = None
    """Whether class labels are a condition; by default where the data has classes and the model takes no text."""
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    vocab_size: int = 2048
    """Upper bound of the embedded tokenizer's vocabulary."""
    max_tokens: int | None = None
    """Length that texts are padded and cut to, their two marks included; by default that of the longest caption, at
    least `least_tokens` and at most 77."""
    least_tokens: int = 32
    """Least length where `max_tokens` is unset, so that prompts may be longer than the captions of the training."""

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout < 1:
            raise UserError(f"condition_dropout: expected 0 <= p < 1, got {self.condition_dropout}")
        if self.max_tokens is not None and not 3 <= self.max_tokens <= 512:
            raise UserError(f"max_tokens: expected 3 to 512, got {self.max_tokens}")
        if self.text_layers * self.text_width**2 > _LARGEST_ENCODER:
            problem = f"expected at most {_LARGEST_ENCODER} for `text_layers` times its square"
            raise UserError(problem, setting="text_width", value=self.text_width)
        in_range(self, text_width=(1, 16384), text_layers=(1, 256), text_heads=(1, 1024), vocab_size=(1, 2**20))
        in_range(self, least_tokens=(2, 77))

    def fingerprint(self) -> dict[str, Any]:
        """All settings; without `least_tokens` where it is 2, as for runs from before it, which so go on."""
        values = asdict(self)
        return {name: value for name, value in values.items() if (name, value) != ("least_tokens", 2)}
