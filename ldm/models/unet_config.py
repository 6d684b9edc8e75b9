"""The shape of a U-Net, and its translation to and from diffusers' `UNet2DConditionModel` configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from ldm.runtime.errors import UserError
from ldm.runtime.schema import convert

# What `UNet2DConditionModel` takes where its config.json leaves a key out (old files leave most of them out).
_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 4, "out_channels": 4, "flip_sin_to_cos": True, "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "dropout": 0.0, "norm_num_groups": 32,
    "norm_eps": 1e-5, "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "attention_head_dim": 8,
    "use_linear_projection": False, "num_class_embeds": None, "resnet_time_scale_shift": "default",
    "addition_embed_type": None, "addition_embed_type_num_heads": 64,
}  # fmt: skip


class _DiffusersUNet(TypedDict, total=False):
    """The types of these keys; one value for all levels, or one a level."""

    sample_size: int | list[int] | None
    in_channels: int
    out_channels: int
    flip_sin_to_cos: bool
    freq_shift: int
    down_block_types: list[str]
    mid_block_type: str | None
    up_block_types: list[str]
    block_out_channels: list[int]
    layers_per_block: int | list[int]
    dropout: float
    norm_num_groups: int
    norm_eps: float
    cross_attention_dim: int | list[int | None] | None
    transformer_layers_per_block: int | list[int]
    attention_head_dim: int | list[int]
    use_linear_projection: bool
    num_class_embeds: int | None
    resnet_time_scale_shift: Literal["default", "scale_shift"]
    addition_embed_type: str | None
    addition_embed_type_num_heads: int


# Keys that may hold these values only.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "upcast_attention": (False, True, None),  # a matter of precision, not of the function
}
_MID: dict[Literal["attention", "resnet", "none"], str | None] = {
    "attention": "UNetMidBlock2DCrossAttn",
    "resnet": "UNetMidBlock2D",
    "none": None,
}
_MAX_LEVELS, _MAX_LAYERS, _MAX_CHANNELS, _MAX_SIZE, _MAX_BLOCKS = 8, 32, 16384, 2**20, 512
_SIZES = ("in_channels", "out_channels", "attention_head_dim", "norm_num_groups")
_OPTIONAL_SIZES = ("sample_size", "cross_attention_dim", "num_class_embeds", "pooled_context_heads")


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net. Tuples hold one entry a level, from the highest resolution down."""

    sample_size: int | None = 32
    """Height and width that it was trained on; it runs on every size divisible by 2**(levels - 1)."""
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 384)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, True)
    """Levels with attention: to pixels and context where there is a context, else to pixels."""
    mid: Literal["attention", "resnet", "none"] = "attention"
    attention_head_dim: int = 32
    """Width of an attention head. Without context, diffusers' files make it the number of heads of the middle too."""
    num_attention_heads: tuple[int, ...] = ()
    """Number of heads, one for all levels or one a level, instead of a width; of models with context."""
    cross_attention_dim: int | None = None
    """Width of the context (text states); none without text."""
    context_in_mid_only: bool = False
    """The levels attend to pixels only, the middle to the context as well."""
    pooled_context_heads: int | None = None
    """Heads of an attention that pools the text into one vector, added to the time embedding; none: no such vector."""
    num_class_embeds: int | None = None
    """Number of classes + 1; the last is the null class. None without classes."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    flip_sin_to_cos: bool = True
    freq_shift: int = 0

    def __post_init__(self) -> None:
        for name in ("block_out_channels", "attention", "num_attention_heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and YAML bring lists
        levels, groups = len(self.block_out_channels), self.norm_num_groups
        _require(1 <= levels <= _MAX_LEVELS, f"block_out_channels: expected 1 to {_MAX_LEVELS} levels, got {levels}")
        _require(len(self.attention) == levels, f"attention: expected {levels} entries, got {len(self.attention)}")
        for name in (*_SIZES, *_OPTIONAL_SIZES):
            value = getattr(self, name)
            _require(
                value is None or 1 <= value <= _MAX_SIZE,
                f"{name}: expected at least 1, at most {_MAX_SIZE}, got {value}",
            )
        _require(min(self.num_attention_heads, default=1) >= 1, "num_attention_heads: expected at least 1")
        for name in ("layers_per_block", "transformer_layers_per_block"):
            value = getattr(self, name)
            _require(1 <= value <= _MAX_LAYERS, f"{name}: expected 1 to {_MAX_LAYERS}, got {value}")
        blocks = levels * self.layers_per_block * self.transformer_layers_per_block
        _require(blocks <= _MAX_BLOCKS, f"layers_per_block: expected at most {_MAX_BLOCKS} blocks in all, got {blocks}")
        for width in self.block_out_channels:
            _require(1 <= width <= _MAX_CHANNELS, f"block_out_channels: expected 1 to {_MAX_CHANNELS}, got {width}")
            _require(width % groups == 0, f"block_out_channels: {width} is not divisible by norm_num_groups = {groups}")
        _require(self.block_out_channels[0] % 2 == 0, "block_out_channels: the first must be even")
        _require(0 <= self.dropout < 1, f"dropout: expected 0 <= dropout < 1, got {self.dropout}")
        _require(0 < self.norm_eps <= 1, f"norm_eps: expected above 0 and at most 1, got {self.norm_eps}")
        _require(0 <= self.freq_shift <= 1, f"freq_shift: expected 0 or 1, got {self.freq_shift}")
        count = len(self.num_attention_heads)
        _require(count in (0, 1, levels), f"num_attention_heads: expected none, 1 or {levels} entries, got {count}")
        _require(
            not (self.num_attention_heads and self.plain_attention),
            "num_attention_heads: levels that attend to pixels only take their heads from attention_head_dim",
        )
        _require(
            not self.context_in_mid_only or self.cross_attention_dim is not None,
            "context_in_mid_only: expected a cross_attention_dim beside it",
        )
        pooled, dim = self.pooled_context_heads, self.cross_attention_dim
        fits = pooled is None or dim is None or dim % pooled == 0
        _require(fits, f"pooled_context_heads: the text's width {dim} does not divide by {pooled}")
        for width, attends, heads in zip(self.block_out_channels, self.attention, self._heads(), strict=True):
            divisor = self.attention_head_dim if self.plain_attention else heads
            name = "attention_head_dim" if self.plain_attention else "heads"
            fits = not attends or width % divisor == 0
            _require(fits, f"attention: {width} channels do not divide by {divisor} ({name})")
        _require(
            self.mid != "attention" or self.block_out_channels[-1] % self.mid_heads == 0,
            f"mid: {self.block_out_channels[-1]} channels do not divide by {self.mid_heads} heads"
            + (" (without text, attention_head_dim is their number there)" if self.plain_attention else ""),
        )

    @property
    def plain_attention(self) -> bool:
        """Whether there are levels that attend to pixels only (diffusers' AttnDownBlock2D, AttnUpBlock2D)."""
        return any(self.attention) and (self.cross_attention_dim is None or self.context_in_mid_only)

    @property
    def mid_heads(self) -> int:
        """Heads of the middle. Beside plain levels diffusers takes their head *width* for this number (issue 2011)."""
        return self.attention_head_dim if self.plain_attention else self.heads(len(self.block_out_channels) - 1)

    def heads(self, level: int) -> int:
        """Number of attention heads at a level."""
        if self.num_attention_heads:
            return self.num_attention_heads[level if len(self.num_attention_heads) > 1 else 0]
        return max(1, self.block_out_channels[level] // self.attention_head_dim)

    def _heads(self) -> list[int]:
        return [self.heads(level) for level in range(len(self.block_out_channels))]

    @property
    def factor(self) -> int:
        """Height and width must be divisible by it."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_diffusers(self) -> dict[str, Any]:
        """The keys of a `UNet2DConditionModel` config.json; what is left out there has diffusers' default."""
        levels = len(self.block_out_channels)
        kind = "Attn" if self.plain_attention else "CrossAttn"
        down = [f"{kind if attends else ''}DownBlock2D" for attends in self.attention]
        return {
            "sample_size": self.sample_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "down_block_types": down,
            "mid_block_type": _MID[self.mid],
            "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "dropout": self.dropout,
            "act_fn": "silu",
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            # None as such is refused there; one None a level means attention without context
            "cross_attention_dim": self.cross_attention_dim or [None] * levels,
            "transformer_layers_per_block": self.transformer_layers_per_block,
            # a width for Attn blocks, a number of heads for CrossAttn blocks and the middle
            "attention_head_dim": self.attention_head_dim if self.plain_attention else _joined(self._heads()),
            "use_linear_projection": self.use_linear_projection,
            "num_class_embeds": self.num_class_embeds,
            "resnet_time_scale_shift": self.resnet_time_scale_shift,
            **self._pooling(),
        }

    def _pooling(self) -> dict[str, Any]:
        if self.pooled_context_heads is None or self.cross_attention_dim is None:
            return {}
        return {"addition_embed_type": "text", "addition_embed_type_num_heads": self.pooled_context_heads}

    @classmethod
    def from_diffusers(cls, keys: Mapping[str, Any]) -> "UNetConfig":
        """Read a `UNet2DConditionModel` configuration; `UserError` names what this U-Net cannot do."""
        public = {key: value for key, value in keys.items() if not key.startswith("_")}
        for key, value in public.items():
            allowed = _FIXED.get(key, (None, False))
            if key not in _DIFFUSERS_DEFAULTS and value not in allowed:
                raise UserError(f"U-Net configuration: {key} = {value!r} is not supported (only {_listed(allowed)})")
        try:
            merged = {**_DIFFUSERS_DEFAULTS, **convert(public, _DiffusersUNet)}
        except ValueError as error:
            raise UserError(f"U-Net configuration: {error}") from None
        down, up, widths = merged["down_block_types"], merged["up_block_types"], merged["block_out_channels"]
        levels = len(widths)
        if [name.replace("Up", "Down") for name in reversed(up)] != list(down) or len(down) != levels:
            raise UserError(f"U-Net configuration: {list(up)} is not the mirror of {list(down)} over {levels} levels")
        kinds = set(down) - {"DownBlock2D"}
        if len(kinds) > 1 or not kinds <= {"AttnDownBlock2D", "CrossAttnDownBlock2D"}:
            supported = "DownBlock2D with either AttnDownBlock2D or CrossAttnDownBlock2D"
            raise UserError(f"U-Net configuration: down_block_types {list(down)}: only {supported} are supported")
        mid = next((ours for ours, theirs in _MID.items() if theirs == merged["mid_block_type"]), None)
        if mid is None:
            raise UserError(f"U-Net configuration: mid_block_type {merged['mid_block_type']!r} is not supported")
        plain = kinds == {"AttnDownBlock2D"}
        context = _same("cross_attention_dim", merged["cross_attention_dim"])
        if mid != "attention" and "CrossAttnDownBlock2D" not in kinds:
            context = None  # diffusers writes one although nothing reads it
        heads = merged["attention_head_dim"]
        pooling = merged["addition_embed_type"]
        _require(pooling in (None, "text"), f"addition_embed_type = {pooling!r} is not supported (only None or 'text')")
        return cls(
            **{key: merged[key] for key in _DIFFUSERS_DEFAULTS if key in _SHARED},
            sample_size=_same("sample_size", merged["sample_size"]),
            block_out_channels=tuple(widths),
            layers_per_block=_same("layers_per_block", merged["layers_per_block"]),
            transformer_layers_per_block=_same("transformer_layers_per_block", merged["transformer_layers_per_block"]),
            attention=tuple(name != "DownBlock2D" for name in down),
            mid=mid,
            cross_attention_dim=context,
            context_in_mid_only=plain and context is not None,
            pooled_context_heads=merged["addition_embed_type_num_heads"] if pooling == "text" else None,
            **(
                {"attention_head_dim": _same("attention_head_dim", heads)}
                if plain
                else {"num_attention_heads": tuple(heads) if isinstance(heads, list | tuple) else (heads,)}
            ),
        )


_SHARED = (
    "in_channels", "out_channels", "flip_sin_to_cos", "freq_shift", "dropout", "norm_num_groups", "norm_eps",
    "use_linear_projection", "num_class_embeds", "resnet_time_scale_shift",
)  # fmt: skip


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"U-Net configuration: {message}")


def _joined(values: list[int]) -> int | list[int]:
    """One number where all are the same."""
    return values[0] if len(set(values)) == 1 else values


def _same(name: str, value: Any) -> Any:
    """The one value of a list whose entries are all the same; `UserError` where they differ."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if any(entry != values[0] for entry in values):
        raise UserError(f"U-Net configuration: {name} = {values} is not supported (one value for all levels)")
    return values[0]


def _listed(values: tuple[Any, ...]) -> str:
    return " or ".join(repr(value) for value in values)
