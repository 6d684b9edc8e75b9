"""Checks of single settings, for dataclasses that refuse a wrong value in one line."""

import reprlib


def is_int(value: object) -> bool:
    """Whether a setting is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a setting is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """`ValueError` that names the setting unless low <= value <= high; with `above`, low < value <= high."""
    fine = is_number(value) and (low < value if above else low <= value) and value <= high  # type: ignore[operator]
    if not fine:
        interval = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a number {interval}, got {reprlib.repr(value)}")


def check_int(name: str, value: object, low: int, high: int) -> None:
    """`ValueError` that names the setting unless it is a whole number with low <= value <= high."""
    if not is_int(value) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {reprlib.repr(value)}")


def check_bool(name: str, value: object) -> None:
    """`ValueError` that names the setting unless it is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {reprlib.repr(value)}")
