"""Weights in a safetensors file. It may come from anybody: what it holds is compared with what is expected of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_WHOLE = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
_LISTED = 6  # differences in a message


def read_weights(
    file: str | Path,
    expected: Mapping[str, Tensor],
    *,
    described_by: str = "config.json",
    exact_types: bool = False,
    current_name: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """The tensors of `file`, on the CPU in the types in which they are stored.

    `ValueError` lists all differences from `expected`, whose values do not matter (it may be on the meta device): in
    names, shapes and kinds of numbers (with `exact_types`: types), from the header, before memory is taken; then
    numbers that are not finite. `described_by` is what the expectation comes from; `current_name` gives the present
    name of an old one.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file; pickled (.bin) and sharded weights are not read")
    try:
        with safe_open(file, framework="pt") as weights:
            stored = [(current_name(key), key) for key in weights.keys()]  # noqa: SIM118 - not a mapping
            twice = [name for name, count in Counter(name for name, _ in stored).items() if count > 1]
            refuse(file, [f"{name!r:.200}: there is an old and a new one" for name in twice])
            headers = {name: weights.get_slice(key) for name, key in stored}
            entries = {name: (tuple(header.get_shape()), header.get_dtype()) for name, header in headers.items()}
            refuse(file, list(differences(entries, expected, described_by, exact_types=exact_types)))
            tensors = {name: weights.get_tensor(key) for name, key in stored}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from None
    refuse(file, not_finite(tensors))
    return tensors


def differences(
    entries: Mapping[str, tuple[tuple[int, ...], str]],
    expected: Mapping[str, Tensor],
    described_by: str,
    *,
    exact_types: bool = False,
) -> Iterator[str]:
    """How the shapes and types of a file's header differ from the expected tensors, one text a tensor."""
    for name, tensor in expected.items():
        shape, types = tuple(tensor.shape), _FLOATS if tensor.is_floating_point() else _WHOLE
        if name not in entries:
            yield f"{name}: expected shape {shape}, found nothing"
        elif entries[name][0] != shape:
            yield f"{name}: expected shape {shape}, found {entries[name][0]}"
        elif entries[name][1] not in ([types[tensor.dtype]] if exact_types else types.values()):
            kind = "floating-point" if types is _FLOATS else "whole"
            kind = types[tensor.dtype] if exact_types else kind
            yield f"{name}: expected {kind} numbers, found {entries[name][1]}"
    for name in sorted(set(entries) - set(expected)):
        yield f"{name!r:.200}: not a part of the model that {described_by} describes"


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """A text for each tensor with NaN or infinity."""
    return [f"{name}: expected finite numbers, found NaN or infinity" for name in tensors if not _finite(tensors[name])]


def refuse(file: object, problems: Sequence[str]) -> None:
    """`ValueError` that lists these problems of a file, if there are any."""
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(f"{file}: {'; '.join(problems[:_LISTED])}{more}")


def _finite(tensor: Tensor) -> bool:
    """A finite sum has finite terms, and costs a thirtieth of looking at each; one that overflows decides nothing."""
    if not tensor.is_floating_point():
        return True
    whole = tensor.double() if tensor.dtype == torch.float64 else tensor.float()
    return bool(whole.sum().isfinite()) or bool(tensor.isfinite().all())
