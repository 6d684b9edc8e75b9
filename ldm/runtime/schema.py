"""JSON of unknown origin: parsed within bounds, then converted into the type that its reader expects.

msgspec converts into dataclasses, TypedDicts and plain types, and names the place of a value of another type; keys that
a type lacks are passed over, so that files of later versions and of other programs load. Nothing here calls code that
a file names.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, TypeVar, overload

import msgspec

from ldm.runtime.text import printable

T = TypeVar("T")
JSON_LIMIT = 32 * 2**20  # bytes
_MAX_CONTAINERS, _MAX_VALUES, _MAX_DEPTH = 2**19, 2**21, 64  # within them 32 MiB take a second or two
_LARGE = re.compile(r"\d{19}|[eE]\+?\d{3}")  # what may be a number beyond 64 bits or float64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_AT = re.compile(r"^(?P<problem>.*?)(?: - at `\$?\.?(?P<key>.*)`)?$", re.DOTALL)


def parse_json(text: str | bytes, *, limit: int = JSON_LIMIT, non_finite: bool = False) -> Any:
    """The value of a JSON text; `ValueError` in one line for what is malformed or beyond the bounds.

    Refused: text that is not UTF-8, a key twice in one object, numbers beyond 64 bits, NaN and infinity (unless
    `non_finite`: diffusers writes them into the settings of schedulers), nesting deeper than 64, more than `limit`
    bytes, and more values than fit into memory as objects: 2 million in 32 MiB, in proportion for another `limit`.
    """
    if len(text) > limit:
        raise ValueError(f"larger than {limit} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    times = limit / JSON_LIMIT
    problem = _beyond(text, times) and _beyond(
        _without_strings(text), times
    )  # brackets and commas in strings do not count
    if problem:
        raise ValueError(problem)
    checked: dict[str, Any] = {"parse_int": _integer, "parse_float": _float} if _LARGE.search(text) else {}
    if non_finite:
        checked.pop("parse_float", None)
    else:
        checked["parse_constant"] = _no_constant
    try:
        value = json.loads(text, object_pairs_hook=_unique, **checked)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}") from None
    if _SURROGATE.search(text):  # half of a pair is no text that can be printed or stored
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half a surrogate pair in a string") from None
    return value


@overload
def convert(value: Any, schema: type[T]) -> T: ...
@overload
def convert(value: Any, schema: Any) -> Any: ...
def convert(value: Any, schema: Any) -> Any:
    """`value`, made of what JSON has, as a `schema`; `ValueError` names the key, what it has and what it expects."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise ValueError(_message(str(error), value)) from None
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}") from None


def _message(text: str, value: Any) -> str:
    """msgspec's `Expected `int`, got `str` - at `$.a[0]`` as `a[0]: expected int, got "x"`."""
    match = _AT.match(text)
    assert match is not None  # every text matches
    problem, key = match["problem"].replace("`", ""), match["key"] or ""
    for json_name, name in (("object", "an object"), ("array", "a list")):
        problem = re.sub(rf"\b(Expected|got) {json_name}\b", rf"\1 {name}", problem)
    problem = problem[:1].lower() + problem[1:]
    given = _value_at(value, key)
    if isinstance(given, str | int | float) and ", got " in problem:
        problem = f"{problem.split(', got ')[0]}, got {printable(json.dumps(given), 60)}"
    return f"{key}: {problem}" if key else problem


def _value_at(value: Any, key: str) -> Any:
    """What stands at msgspec's path, None where the path does not name it."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return None
    return value


def _beyond(text: str, times: float) -> str:
    """What of the structure of a JSON text is beyond the bounds; "" for nothing."""
    opened = text.count("[") + text.count("{")
    if opened > _MAX_CONTAINERS * times or text.count(",") > _MAX_VALUES * times:
        return f"more than {_MAX_CONTAINERS * times:.0f} objects and lists, or {_MAX_VALUES * times:.0f} values"
    brackets = re.findall(r"[\[\]{}]", text) if opened > _MAX_DEPTH else []
    depth = max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)
    return f"nested deeper than {_MAX_DEPTH}" if depth > _MAX_DEPTH else ""


def _without_strings(text: str) -> str:
    return re.sub('"[^"]*"', '""', text.replace("\\\\", "").replace('\\"', ""))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f'the key "{printable(twice, 60)}" is there twice')
    return content


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"a number beyond 64 bits: {digits[:20]}...")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"a number beyond float64: {digits[:20]}")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def finite(value: Any) -> Any:
    """The same nested value with None for every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
