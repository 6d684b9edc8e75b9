"""Arguments to settings: dataclasses are the one source; YAML files and flags fill them, in this order."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_type_hints

import tyro

from ldm.runtime.errors import UserError
from ldm.runtime.settings import find_config, read_settings

Settings = TypeVar("Settings")
Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]  # a flag that is given once for each of its values


def parse(
    schema: type[Settings],
    arguments: Sequence[str],
    command: str,
    base: Settings | None = None,
    *,
    required: str = "",
) -> Settings:
    """Settings from `base` (or the defaults), then `--config NAME_OR_FILE`, then flags; the last value wins.

    `_` and `-` in flags are the same; a flag that takes several strings may be repeated.

    `UserError` in one line for arguments that cannot be parsed; `--help` prints and exits, and begins with the
    `required` flags.
    """
    names, rest = _take_option(_merge_repeated(list(arguments), _string_lists(schema)), "--config")
    default = read_settings(schema, find_config(names[-1]), base) if names else base
    about, needed = (schema.__doc__ or "").strip(), f"{required} must be given. " if required else ""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(  # type: ignore[return-value]
                schema,
                args=rest,
                default=default,
                prog=f"ldm {command}",
                config=(tyro.conf.OmitArgPrefixes,),
                description=f"{about} {needed}--config NAME_OR_FILE reads settings from a YAML file.",
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UserError(_one_line(printed.getvalue())) from None


def require(value: object, name: str, hint: str) -> None:
    """`UserError` unless the argument of this name was given."""
    if not value:
        raise UserError(f"{name} is missing: give {hint}")


def check_model_folder(folder: str) -> None:
    """`UserError` for a model that is no folder; what is in it is checked when it is loaded."""
    if not Path(folder).is_dir():
        remedy = "give a model folder or the output folder of `ldm train diffusion`"
        raise UserError(f"{folder}: no such folder", remedy=remedy)


def check_file(output: str | Path, example: str) -> None:
    """`UserError` for an `--output` that is a folder."""
    if output and Path(output).is_dir():
        raise UserError(f"--output {output}: is a folder; give a file name such as {example}")


def check_new_folder(folder: str, flag: str) -> None:
    """`UserError` unless the folder is new, empty or not named."""
    path = Path(folder)
    if folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{flag} {folder}: is not an empty folder, it holds something; give a new one")


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
    """The flags that take several strings, of a dataclass and of the dataclasses in it."""
    flags: set[str] = set()
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if hint == tuple[str, ...]:
            flags.add(f"--{name.replace('_', '-')}")
        elif dataclasses.is_dataclass(hint):
            flags |= _string_lists(hint)  # type: ignore[arg-type]
    return flags


def _merge_repeated(arguments: list[str], flags: set[str]) -> list[str]:
    """`--guidance a --guidance b` as `--guidance a b`, the form that tyro parses."""
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    current = rest
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            flag = name.replace("_", "-")
            current = rest
            if flag in flags:
                current = values.setdefault(flag, [])
                current += [value] if value else []
                continue
        current.append(argument)
    return rest + [word for flag, words in values.items() for word in (flag, *words)]


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
