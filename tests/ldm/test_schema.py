"""JSON of unknown origin is parsed within bounds, and converted into what its reader expects."""

import json
import time
from dataclasses import dataclass
from typing import Literal

import pytest

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.schema import convert, parse_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "a": 3}', 'the key "a" is there twice'),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "beyond float64"),
        ('{"a": %s}' % ("9" * 5000), "beyond 64 bits"),
        ('{"a": 18446744073709551616}', "beyond 64 bits"),
        ("[" * 40_000 + "]" * 40_000, "nested deeper than 64"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64"),
        ("[" + "[]," * 2**21 + "[]]", "more than"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("", "Expecting value"),
        ('{"a": 1} 2', "Extra data"),
        ('{"a": ' + '"x' * 1000, "delimiter"),
    ],
)
def test_what_is_malformed_or_beyond_the_bounds_is_refused_at_once(text, words):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    assert time.perf_counter() - start < 2


def test_what_has_many_keys_or_brackets_in_its_strings_is_read():
    many = {f"key {i}": [i, i / 7, "[{" * 50] for i in range(90_000)}
    assert parse_json(json.dumps(many)) == many
    assert parse_json('{"a": -Infinity}', non_finite=True) == {"a": -float("inf")}
    assert parse_json('{"a": "\\ud83d\\ude00", "b": 9223372036854775807}') == {"a": "\N{GRINNING FACE}", "b": 2**63 - 1}


@dataclass(frozen=True)
class Sizes:
    name: Literal["conv", "vit"]
    widths: tuple[int, ...]
    rate: float = 0.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected an object, got a list"),
        ({"name": "conv"}, "widths"),
        ({"name": "vgg", "widths": []}, "name: .*'vgg'"),
        ({"name": "conv", "widths": [8, "16"]}, r'widths\[1\]: expected int, got "16"'),
        ({"name": "conv", "widths": [8, True]}, r"widths\[1\]: expected int, got true"),
        ({"name": "conv", "widths": {"a": 8}}, "widths: expected a list, got an object"),
        ({"name": "conv", "widths": [8], "rate": "0.5"}, 'rate: expected float, got "0.5"'),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(tmp_path, value, words):
    with pytest.raises(ValueError, match=words):
        convert(value, Sizes)
    atomic_write_json(tmp_path / "sizes.json", value)
    with pytest.raises(UserError, match=rf"sizes\.json: .*{words}"):
        read_json(tmp_path / "sizes.json", Sizes)


def test_numbers_become_floats_lists_become_tuples_and_unknown_keys_are_passed_over():
    assert convert({"name": "vit", "widths": [8], "rate": 1, "new": None}, Sizes) == Sizes("vit", (8,), 1.0)


def test_what_is_not_finite_is_written_as_null(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"loss": float("nan"), "rows": [(1, float("inf"))]})
    assert read_json(tmp_path / "a.json") == {"loss": None, "rows": [[1, None]]}
