"""Settings: dataclasses are the one source; YAML files and flags fill them, in this order."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ldm.runtime.errors import UserError, suggest

Settings = TypeVar("Settings")
Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]  # a flag that is given once for each of its values
_LIMIT = 2**20  # bytes of a settings file


def config_folder() -> Path:
    """The shipped settings: inside the wheel, or `configs/` of a checkout that is installed editable."""
    packed = Path(str(resources.files("ldm"))) / "configs"
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def config_names() -> list[str]:
    """Names that --config takes, such as cifar10/diffusion."""
    root = config_folder()
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The YAML file of a shipped name or of a path; `UserError` with the known names otherwise."""
    if name in config_names():
        return config_folder() / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        raise UserError(
            "neither a file nor a shipped name", remedy=suggest(name, config_names()), setting="config", value=name
        )
    return path


def read_settings(schema: type[Settings], path: Path, base: Settings | None = None) -> Settings:
    """Fill the dataclass `schema` from a YAML file; what the file leaves out is as in `base`, or the default.

    `UserError` names the file and the key for a key that is unknown, a value of the wrong kind, an interpolation (a
    settings file reads nothing but itself), or an alias (a few bytes of which can stand for gigabytes).
    """
    if path.stat().st_size > _LIMIT:
        raise UserError(f"{path}: larger than {_LIMIT} bytes, not a settings file")
    try:
        text = path.read_text(encoding="utf-8")
        if "${" in text:
            raise UserError("interpolation (${...}) is not taken in settings", remedy="write the value")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise UserError("aliases (*name) are not taken in settings", remedy="write the value")
        loaded = OmegaConf.create(text)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base or schema), loaded))  # type: ignore[return-value]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise UserError(f"{path}: {place}not valid YAML ({getattr(error, 'problem', error)})") from None
    except ConfigKeyError as error:
        known = _keys_beside(schema, str(error.full_key))
        raise UserError(
            f"{path}: unknown key {error.full_key!r}", remedy=suggest(str(error.full_key).split(".")[-1], known)
        ) from None
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0].replace("'$VALUE' of type '$VALUE_TYPE' ", "")
        raise UserError(f"{path}: {error.full_key or _place(base or schema, loaded)}: {message}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except (ValueError, TypeError) as error:  # a UserError, which has no place yet, among them
        raise UserError(f"{path}: {error}") from None


def _place(base: Any, loaded: Any) -> str:
    """The dotted key of the first value that the settings do not take, where the error does not tell."""
    leaves: list[tuple[str, Any]] = [("", OmegaConf.to_container(loaded))]
    while leaves:
        key, value = leaves.pop(0)
        if isinstance(value, dict):
            leaves = [(f"{key}.{name}".lstrip("."), inner) for name, inner in value.items()] + leaves
            continue
        part = OmegaConf.create()
        OmegaConf.update(part, key, value)
        try:
            OmegaConf.merge(OmegaConf.structured(base), part)
        except OmegaConfBaseException:
            return f"{key}: {value!r}"[:100]
    return "settings"


def from_mapping(schema: type[Settings], values: Any) -> Settings:
    """The flat dataclass `schema` filled from untrusted JSON, taken literally; `UserError` for another key or kind."""
    if not isinstance(values, dict):
        raise UserError(f"expected settings, got {type(values).__name__}")
    hints, known = get_type_hints(schema), [each.name for each in dataclasses.fields(schema)]  # type: ignore[arg-type]
    taken = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"unknown key {name!r}", remedy=suggest(name, known))
        taken[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(taken[name], hints[name]):
            raise UserError(f"{name}: expected {hints[name]}, got {type(value).__name__}")
    return schema(**taken)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type such as int, float | None, tuple[str, ...]."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is tuple:
        kinds = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if get_origin(hint) is Literal:
        return value in parts
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def to_yaml(settings: Any) -> str:
    """The settings, complete, as YAML that `read_settings` takes."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def _keys_beside(schema: type, key: str) -> list[str]:
    """The keys that the level of a dotted key has."""
    for part in key.split(".")[:-1]:
        schema = get_type_hints(schema).get(part, schema)
    return [each.name for each in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else []


def parse(schema: type[Settings], arguments: Sequence[str], command: str, base: Settings | None = None) -> Settings:
    """Settings from `base` (or the defaults), `--config NAME_OR_FILE` if given, then flags; what comes later wins.

    `_` and `-` in flags are the same; a flag that takes several strings may also be repeated.

    `UserError` in one line for what cannot be read; `--help` prints and exits.
    """
    names, rest = _take_option(_joined(list(arguments), _string_lists(schema)), "--config")
    default = read_settings(schema, find_config(names[-1]), base) if names else base
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(  # type: ignore[return-value]
                schema,
                args=rest,
                default=default,
                prog=f"ldm {command}",
                config=(tyro.conf.OmitArgPrefixes,),
                description=f"{(schema.__doc__ or '').strip()} --config NAME_OR_FILE takes settings from a YAML file.",
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UserError(_one_line(printed.getvalue())) from None


def _take_option(arguments: list[str], name: str) -> tuple[list[str], list[str]]:
    """The values of an option, and the arguments without it."""
    values, rest = [], []
    while arguments:
        argument = arguments.pop(0)
        if argument == name:
            if not arguments:
                raise UserError(f"{name} needs a value")
            values.append(arguments.pop(0))
        elif argument.startswith(f"{name}="):
            values.append(argument.split("=", 1)[1])
        else:
            rest.append(argument)
    return values, rest


def _string_lists(schema: type) -> set[str]:
    """The flags of a dataclass, and of those in it, that take several strings."""
    found: set[str] = set()
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if hint == tuple[str, ...]:
            found.add(f"--{name.replace('_', '-')}")
        elif dataclasses.is_dataclass(hint):
            found |= _string_lists(hint)  # type: ignore[arg-type]
    return found


def _joined(arguments: list[str], flags: set[str]) -> list[str]:
    """`--guidance a --guidance b` as `--guidance a b`, which is how the parser wants it."""
    given: dict[str, list[list[str]]] = {}
    rest: list[str] = []
    current = rest
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            flag = name.replace("_", "-")
            current = rest
            if flag in flags:
                current = [value] if value else []
                given.setdefault(flag, []).append(current)
                continue
        current.append(argument)
    return rest + [word for flag, lists in given.items() for word in (flag, *(each for one in lists for each in one))]


def _one_line(box: str) -> str:
    """The message inside tyro's box: its first part, and the first of the flags that it suggests."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")] or box.split("\n")
    parts: list[list[str]] = [[]]
    for line in lines:
        if line and set(line) <= {"─"}:
            parts.append([])
        elif line:
            parts[-1].append(line)
    message = " ".join(parts[0])
    hints = [line.split()[0] for part in parts[1:] if part and part[0].startswith("Perhaps") for line in part[1:]]
    flags = [hint.rstrip(",") for hint in hints if hint.startswith("--")]
    return message + (f"; did you mean {flags[0]}?" if flags else "")
