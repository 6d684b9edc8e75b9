"""Names -> solvers and guidances with their options, and their text form, as in "cfg(7.5)". Imports no torch.

Another installed package adds its own by entry point, in the groups "ldm.samplers" and "ldm.guidances"; the entry
point names a function or class that it has decorated with `sampler` or `guidance`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import math
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from samplers.level import Guidance, Levels, Solver, check_levels, no_noise

GROUPS = {"sampler": "ldm.samplers", "guidance": "ldm.guidances"}
_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True)
class SamplerInfo:
    """One solver: `order` of convergence with its default options from its own start, `evaluations` of the denoiser a
    step, `options` with their defaults. `full_order` is the order of its steps between the first and last ones, where
    that is higher: what a long run shows whose first steps are short or change little.
    """

    name: str
    function: Solver
    order: int
    full_order: int
    deterministic: bool
    evaluations: int
    source: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class GuidanceInfo:
    """One guidance: `evaluations` besides "cond", `options` with their defaults (`inspect.Parameter.empty`: none)."""

    name: str
    function: Callable[..., Guidance]
    evaluations: int
    source: str
    options: Mapping[str, Any]


_samplers: dict[str, SamplerInfo] = {}
_guidances: dict[str, GuidanceInfo] = {}
_plugged: set[str] = set()


class _DuplicateError(ValueError):
    """Two solvers or two guidances of one name."""


def sampler(
    name: str,
    *,
    order: int,
    source: str,
    full_order: int | None = None,
    evaluations: int = 1,
    draws: bool | str = False,
    between: bool | str = False,
) -> Callable[[_T], _T]:
    """Registers a solver `f(denoise, x, levels, *, noise, **options)`; its arguments are checked before its first step.

    `order` and `full_order` are those of `SamplerInfo`.
    `draws`: whether it draws noise at its steps, or the name of the option that makes it so where it is above 0.
    `between`: likewise, whether it evaluates between the levels. Options are checked by their annotation: a number
    must be finite and not negative, a Literal one of its values.
    """

    def register(function: _T) -> _T:
        options = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and key != "noise"
        }

        @functools.wraps(function)
        def checked(denoise: Any, x: Any, levels: Levels, *, noise: Any = None, **given: Any) -> Any:
            _check_options(info, given)
            settings = {**options, **given}
            if noise is None and (settings[draws] > 0 if isinstance(draws, str) else draws):
                why = f" with {draws} = {settings[draws]}" if isinstance(draws, str) else ""
                raise ValueError(f"{name}{why} draws noise at its steps: pass noise, say SampleNoise(seed, indices)")
            levels = check_levels(levels, between=settings[between] > 0 if isinstance(between, str) else between)
            return function(denoise, x, levels, noise=no_noise if noise is None else noise, **given)

        deterministic = not (options[draws] if isinstance(draws, str) else draws)
        full, table = full_order or order, MappingProxyType(options)
        info = SamplerInfo(name, checked, order, full, deterministic, evaluations, source, table)
        _add(_samplers, info)
        return typing.cast(_T, checked)

    return register


def guidance(name: str, *, source: str, evaluations: int = 1) -> Callable[[_T], _T]:
    """Registers a guidance: a frozen dataclass whose fields are its options, or a function that returns one."""

    def register(function: _T) -> _T:
        if isinstance(function, type) and not issubclass(function, Guidance):
            raise ValueError(f"the guidance {name!r}: {function.__name__} must derive from samplers.Guidance")
        options = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()}
        _add(_guidances, GuidanceInfo(name, function, evaluations, source, MappingProxyType(options)))
        return function

    return register


def samplers() -> Mapping[str, SamplerInfo]:
    """Every known solver by name, those of plug-ins included."""
    _load_plugins("sampler")
    return MappingProxyType(_samplers)


def guidances() -> Mapping[str, GuidanceInfo]:
    """Every known guidance by name, those of plug-ins included."""
    _load_plugins("guidance")
    return MappingProxyType(_guidances)


def get_sampler(name: str) -> SamplerInfo:
    return _get(samplers(), name, "sampler")


def get_guidance(name: str) -> GuidanceInfo:
    return _get(guidances(), name, "guidance")


def parse_call(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A text like "cfg(7.5, interval=[0.3, 5])" -> ("cfg", (7.5,), {"interval": [0.3, 5]}): literals only, nothing
    runs.
    """
    problem = f'expected a name or a call of literals such as "cfg(7.5, interval=[0.3, 5])"; got {text[:80]!r}'
    if len(text) > 1000:
        raise ValueError(f"{problem}, which is longer than 1000 characters")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, (), {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        args = tuple(ast.literal_eval(arg) for arg in node.args)
        kwargs = {str(entry.arg): ast.literal_eval(entry.value) for entry in node.keywords if entry.arg is not None}
        if len(kwargs) < len(node.keywords):
            raise ValueError
        return node.func.id, args, kwargs
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError(problem) from None


def parse_guidance(text: str) -> Guidance:
    """The guidance that a text such as "cfg(7.5)" stands for."""
    name, args, kwargs = parse_call(text)
    info = get_guidance(name)
    _bind(name, info.options, args, kwargs)
    try:
        made = info.function(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{text}: an option has the wrong type ({error})") from None
    if not isinstance(made, Guidance):
        raise ValueError(f"{name} makes a {type(made).__name__}: derive its class from samplers.Guidance")
    return made


def guidance_text(made: Guidance) -> str:
    """The text that `parse_guidance` makes this guidance of; ValueError for one that no text makes."""
    kind = type(made).__name__
    name = next((info.name for info in guidances().values() if info.function is type(made)), "")
    if not name or not dataclasses.is_dataclass(made):
        raise ValueError(f"{kind} is not a registered guidance; give its text, say 'cfg(3)'")
    options = []
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if field.init and value != field.default:
            options.append(repr(value) if field.default is dataclasses.MISSING else f"{field.name}={value!r}")
    text = f"{name}({', '.join(options)})"
    if parse_guidance(text) != made:
        raise ValueError(f"the options of {kind} have no text form")
    return text


def parse_sampler(text: str) -> tuple[str, dict[str, Any]]:
    """ "ddim(eta=1)" or "ddim(1)" -> ("ddim", {"eta": 1}): the name of a solver and its options, checked."""
    name, args, kwargs = parse_call(text)
    info = get_sampler(name)
    options = _bind(name, info.options, args, kwargs)
    _check_options(info, options)
    return name, options


def _add(table: dict[str, Any], info: Any) -> None:
    known = table.get(info.name)
    if known is not None:
        functions = [inspect.unwrap(f) for f in (known.function, info.function)]
        modules = sorted({f.__module__ for f in functions})
        if len({(f.__module__, f.__qualname__) for f in functions}) == 1:  # a cell of a notebook that runs again
            warnings.warn(f"{info.name!r} is registered anew and replaces the one before", stacklevel=4)
            table[info.name] = info
            return
        raise _DuplicateError(f"the name {info.name!r} is registered twice, by {' and '.join(modules)}")
    table[info.name] = info


def _get(table: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}{_known(name, table, 'known are')}")
    return table[name]


def _known(word: str, known: Iterable[str], lead: str) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f"; {lead} {', '.join(names) or 'none'}" + (f'; did you mean "{close[0]}"?' if close else "")


def _bind(name: str, options: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if len(args) > len(options):
        raise ValueError(f"{name} takes {len(options)} options; got {len(args)}")
    bound = dict(zip(options, args, strict=False))
    for key, value in kwargs.items():
        if key not in options:
            raise ValueError(f"{name} has no option {key!r}{_known(key, options, 'its options are')}")
        if key in bound:
            raise ValueError(f"{name} got two values for {key!r}")
        bound[key] = value
    missing = [key for key, default in options.items() if default is inspect.Parameter.empty and key not in bound]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}, for example {name}({', '.join('2.0' for _ in missing)})")
    return bound


def _check_options(info: SamplerInfo, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in info.options:
            raise ValueError(f"{info.name} has no option {key!r}{_known(key, info.options, 'its options are')}")
        if value != info.options[key]:
            _check_option(f"{info.name}: {key}", _types(info.function)[key], value)


@functools.cache  # reading the annotations takes as long as ten steps
def _types(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(inspect.unwrap(function))


def _check_option(what: str, hint: Any, value: Any) -> None:
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{what} must be one of {', '.join(map(str, typing.get_args(hint)))}; got {value!r}")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{what} must be True or False; got {value!r}")
    elif hint in (int, float):
        whole = hint is int
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"{what} must be a {'whole' if whole else 'finite'} number, not negative; got {value!r}")


def _load_plugins(kind: str) -> None:
    """Import what installed packages offer; ValueError, in one line with the package's name, for one that fails."""
    if kind in _plugged:
        return
    for point in importlib.metadata.entry_points(group=GROUPS[kind]):
        package = point.dist.name if point.dist is not None else point.value.partition(":")[0]
        try:
            point.load()
        except Exception as error:  # a package's import may raise anything
            problem = str(error) if isinstance(error, _DuplicateError) else f"cannot be imported ({_one_line(error)})"
            raise ValueError(f"plug-in {package} ({point.value}): {problem}; repair or uninstall it") from None
        if point.name not in (_samplers if kind == "sampler" else _guidances):
            problem = f"registers no {kind} named {point.name!r}; decorate it with samplers.{kind}"
            raise ValueError(f"plug-in {package} ({point.value}) {problem}")
    _plugged.add(kind)


def _one_line(error: Exception) -> str:
    """The kind and the text of an error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
