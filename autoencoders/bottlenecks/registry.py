"""Bottlenecks by name: options, sizes, capabilities, and how each is built. Imports no torch.

Another installed package adds its own by entry point, in the group "ldm.bottlenecks"; the entry point names a class
that it has decorated with `bottleneck`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from autoencoders.settings import SharedSettings

GROUP = "ldm.bottlenecks"


class BottleneckConfig:
    """Base class of what is registered: a frozen dataclass whose fields are the options of a bottleneck.

    Its methods take the settings of the whole autoencoder. The defaults are those of one level of latents with the
    channels of the encoder's features, without codebook and prior.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    shared: ClassVar[tuple[str, ...]] = ()  # the `SharedSettings` that it uses too, which are saved with its options
    own_coder: ClassVar[Literal["none", "linear"] | None] = None  # in place of `coder`; none: latents are the image
    class_name: ClassVar[str] = "Autoencoder"  # in config.json, with convolutional coders
    file_defaults: ClassVar[Mapping[str, Any]] = {}  # keys of that class, with the value of an absent one
    features_per_latent: ClassVar[int] = 1
    has_prior: ClassVar[bool] = False  # `sample_prior` works
    has_density: ClassVar[bool] = False  # prior and posterior have densities, so log p(x) is bounded
    calibrated_by_quant_conv: ClassVar[bool] = False  # the calibration may be stored in the 1x1 convolutions

    def build(self, config: SharedSettings) -> Any:
        """The `Bottleneck` module; torch is imported here, not by the settings."""
        raise NotImplementedError

    def check(self, config: SharedSettings) -> None:
        """`ValueError` for settings that do not fit together; each by itself is checked where it is made."""

    def level_channels(self, config: SharedSettings) -> tuple[int, ...]:
        """Channels of the latents at each level, coarse to fine, each level twice as fine as the one before."""
        return (config.code_channels or config.latent_channels,)

    def encoder_outputs(self, config: SharedSettings) -> int:
        """Channels of the encoder's features."""
        return self.features_per_latent * config.latent_channels

    def decoder_inputs(self, config: SharedSettings) -> int:
        """Channels of the decoder's input."""
        return config.latent_channels

    def quant_conv(self, config: SharedSettings) -> bool:
        """Whether there are 1x1 convolutions before and after the bottleneck, as in diffusers."""
        return False

    def codebook_sizes(self, config: SharedSettings) -> tuple[int, ...]:
        """Number of indices at each level, coarse to fine; () without a codebook."""
        return ()

    def indices_per_position(self, config: SharedSettings) -> int:
        """Number of indices at a position of the latents."""
        return 1

    def settings(self, config: SharedSettings) -> dict[str, Any]:
        """The shared settings that it uses and its options, for config.json."""
        return {name: getattr(config, name) for name in self.shared} | asdict(self)  # type: ignore[call-overload]

    def entries(self, config: SharedSettings) -> dict[str, Any]:
        """Its keys in config.json, under a class name of its own."""
        return {}

    @classmethod
    def from_entries(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`entries` undone: arguments of `AutoencoderConfig`."""
        return {"bottleneck": cls.name}

    def __str__(self) -> str:
        """The name, or a call with all options such as "mine(size=3)", which `parse_bottleneck` reads."""
        options = ", ".join(f"{name}={value!r}" for name, value in asdict(self).items())  # type: ignore[call-overload]
        return f"{self.name}({options})" if options else self.name


_bottlenecks: dict[str, type[BottleneckConfig]] = {}
_loaded: set[str] = set()
_T = TypeVar("_T", bound=type[BottleneckConfig])


def bottleneck(name: str, *, source: str) -> Callable[[_T], _T]:
    """Registers a frozen dataclass that derives from `BottleneckConfig`."""

    def register(config: _T) -> _T:
        known = _bottlenecks.get(name)
        if known is not None and (known.__module__, known.__qualname__) == (config.__module__, config.__qualname__):
            warnings.warn(f"the bottleneck {name!r} is registered anew and replaces the one before", stacklevel=2)
        elif known is not None:
            modules = sorted({_bottlenecks[name].__module__, config.__module__})
            raise ValueError(f"the name {name!r} is registered twice, by {' and '.join(modules)}")
        config.name, config.source = name, source
        _bottlenecks[name] = config
        return config

    return register


def bottlenecks(*, plugins: bool = True) -> Mapping[str, type[BottleneckConfig]]:
    """Every registered bottleneck by name, with those of installed plug-ins, or without importing any."""
    if plugins:
        _load_plugins()
    return MappingProxyType(_bottlenecks)


def get_bottleneck(name: str) -> type[BottleneckConfig]:
    """The registered bottleneck of a name; plug-ins are imported for a name that is not built in."""
    return _bottlenecks.get(name) or bottlenecks().get(name) or _refuse(name)


def parse_bottleneck(text: str) -> tuple[str, dict[str, Any]]:
    """A text such as "mine(size=3)" -> ("mine", {"size": 3}): literals only, nothing runs."""
    problem = f'bottleneck: expected a name or a call such as "mine(size=3)", got {text!r:.100}'
    try:
        node = ast.parse(text.strip()[:1000], mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError(problem)
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        return node.func.id, {str(name): value for name, value in options.items()}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, AttributeError):
        raise ValueError(problem) from None


def make_options(config: type[BottleneckConfig], values: Mapping[str, Any]) -> BottleneckConfig:
    """The registered class with these options; `ValueError` in one line for others."""
    names = [field.name for field in fields(config)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        options = f"its options are {', '.join(names)}" if names else "it has none"
        raise ValueError(f"bottleneck {config.name} has no option {unknown[0]!r:.80}; {options}")
    try:
        return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"bottleneck {config.name}: an option is missing or of the wrong type ({error})") from None


def packed_channels(channels: Sequence[int]) -> int:
    """Channels of levels of so many channels, packed into one tensor at the coarsest grid: sum_l C_l 4^l."""
    return sum(count * 4**level for level, count in enumerate(channels))


def _refuse(name: str) -> type[BottleneckConfig]:
    close = difflib.get_close_matches(name, _bottlenecks, n=1)
    raise ValueError(
        f"bottleneck: expected one of {', '.join(_bottlenecks)}, or of an installed plug-in, got {reprlib.repr(name)}"
        + (f'; did you mean "{close[0]}"?' if close else "")
    )


def _load_plugins() -> None:
    """Import what installed packages offer; `ValueError`, in one line with the package's name, for one that fails."""
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name in _loaded:
            continue
        package = point.dist.name if point.dist is not None else point.value.partition(":")[0]
        try:
            point.load()
        except Exception as error:  # a package's import may raise anything
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"plug-in {package} ({point.value}): cannot be imported ({text}); uninstall it") from None
        if point.name not in _bottlenecks:
            problem = f"registers no bottleneck named {point.name!r}; decorate it with autoencoders.bottleneck"
            raise ValueError(f"plug-in {package} ({point.value}) {problem}")
        _loaded.add(point.name)
