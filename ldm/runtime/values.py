"""The values that Python gives to settings: lists and single values become tuples, other types are refused by name."""

from __future__ import annotations

import functools
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ldm.runtime.errors import UserError


def check_values(settings: Any) -> None:
    """For `__post_init__` of a frozen dataclass: lists become tuples, and so does one value where several are meant.

    So `metrics="fid"` is ("fid",). `UserError` names the setting for a value of another type.
    """
    for name, hint in _hints(type(settings)).items():  # type: ignore[arg-type]
        value = getattr(settings, name)
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint) and _fits((value,), hint):
            value = (value,)
        if not _fits(value, hint):
            kind = hint.__name__ if isinstance(hint, type) else str(hint)
            raise UserError(f"expected {kind}, got {value!r:.80}", setting=name)
        object.__setattr__(settings, name, value)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


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
