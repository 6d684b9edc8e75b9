"""The settings of the conditioning."""

from dataclasses import dataclass

from ldm.runtime.errors import UserError


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
    """Length that texts are padded and cut to; by default that of the longest caption, at most 77."""

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout < 1:
            raise UserError(f"condition_dropout: expected 0 <= p < 1, got {self.condition_dropout}")
        if self.max_tokens is not None and not 3 <= self.max_tokens <= 512:
            raise UserError(f"max_tokens: expected 3 to 512, got {self.max_tokens}")
        for name in ("text_width", "text_layers", "text_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
