"""Settings are dataclasses: read from YAML and JSON, written as YAML."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ldm.runtime.errors import UserError
from ldm.runtime.schema import convert
from ldm.runtime.text import suggest

Settings = TypeVar("Settings")
_LIMIT = 2**17  # bytes of a settings file; to parse them takes a second
_SCANNER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


def config_folder() -> Path:
    """The shipped settings: inside the wheel, or `configs/` of a checkout that is installed editable."""
    packed = Path(str(resources.files("ldm"))) / "configs"
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def config_names() -> list[str]:
    """The names of the shipped settings, such as cifar10/diffusion."""
    root = config_folder()
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The YAML file for a shipped name or a path; otherwise a `UserError` with the known names."""
    if name in config_names():
        return config_folder() / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        remedy = suggest(name, config_names())
        raise UserError("neither a file nor a shipped name", remedy=remedy, setting="config", value=name)
    return path


def read_settings(schema: type[Settings], path: Path, base: Settings | None = None) -> Settings:
    """Fill the dataclass `schema` from a YAML file; keys that it lacks are as in `base`, or have their default.

    `UserError` names the file and the key for an unknown key, a value of the wrong type, an interpolation (a settings
    file reads no other source), or an alias (a few bytes can expand to gigabytes).
    """
    if path.stat().st_size > _LIMIT:
        raise UserError(f"{path}: larger than {_LIMIT} bytes, not a settings file")
    try:
        text = path.read_text(encoding="utf-8")
        if "${" in text:
            raise UserError("interpolation (${...}) is not allowed in settings", remedy="write the value")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, _SCANNER)):
            raise UserError("aliases (*name) are not allowed in settings", remedy="write the value")
        loaded = OmegaConf.create(text)
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base or schema), loaded))
        _check_types(settings)
        return settings
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    except yaml.YAMLError as error:
        mark, reason = None, str(error)
        if isinstance(error, yaml.MarkedYAMLError):
            mark, reason = error.problem_mark, str(error.problem)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        reason = "it has more values than any settings" if "expansion exceeds" in reason else reason
        raise UserError(f"{path}: {line}not valid YAML ({reason})") from None
    except ConfigKeyError as error:
        key = str(error.full_key)
        remedy = suggest(key.split(".")[-1], _keys_beside(schema, key))
        raise UserError(f"{path}: unknown key {key!r}", remedy=remedy) from None
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0].replace("'$VALUE' of type '$VALUE_TYPE' ", "")
        raise UserError(f"{path}: {error.full_key or _first_bad_key(base or schema, loaded)}: {message}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except (ValueError, TypeError) as error:  # includes UserError, which does not name the file yet
        raise UserError(f"{path}: {error}") from None


def _check_types(settings: Any, prefix: str = "") -> None:
    """`ValueError` for a value of another type, such as a list among strings, which OmegaConf lets pass."""
    hints = get_type_hints(type(settings))
    for name in (field.name for field in dataclasses.fields(settings)):
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            _check_types(value, f"{prefix}{name}.")
            continue
        try:
            convert(value, hints[name])
        except ValueError as error:
            raise ValueError(f"{prefix}{name}: {error}") from None


def _first_bad_key(base: Any, loaded: Any) -> str:
    """The dotted key of the first value that does not fit the settings; for errors without a key."""
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
    """The flat dataclass `schema` filled from untrusted JSON; `UserError` for an unknown key or another type."""
    if not isinstance(values, dict):
        raise UserError(f"expected settings, got {type(values).__name__}")
    known = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(f"unknown key {name!r}", remedy=suggest(name, known))
    try:
        return convert(values, schema)
    except ValueError as error:
        raise UserError(f"{error}") from None


def to_yaml(settings: Any) -> str:
    """All settings as YAML for `read_settings`."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def _keys_beside(schema: type, key: str) -> list[str]:
    """All valid keys at the level of a dotted key."""
    for part in key.split(".")[:-1]:
        schema = get_type_hints(schema).get(part, schema)
    return [field.name for field in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else []
