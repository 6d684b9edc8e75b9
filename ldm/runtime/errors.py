"""The exceptions that end a command."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

LARGEST = 2**31 - 1  # count of anything: steps, images, bytes of a batch are numbered in 32 or 64 bits
LARGEST_BATCH = 2**16  # images
LARGEST_SEED = 2**63 - 1
MOST_WORKERS = 1024  # processes that load images
TINY = sys.float_info.min  # the smallest number above 0


class UserError(ValueError):
    """A mistake that the user can correct: one line saying what is wrong, where, and what would be right.

    `setting` names the settings at fault, as Python and YAML have them; `value` is what was given. In the text of
    `problem` and `remedy` a setting stands in backticks. The command line prints the line with flags in their place,
    without a traceback, and exits with status 2.
    """

    def __init__(
        self, problem: str, *, setting: str | Sequence[str] = (), value: object = None, remedy: str = ""
    ) -> None:
        settings = (setting,) if isinstance(setting, str) else tuple(setting)
        subject = ", ".join(f"`{name}`" for name in settings) + ("" if value is None else f" {value}")
        super().__init__((f"{subject}: " if subject else "") + problem + (f"; {remedy}" if remedy else ""))
        self.settings, self.problem, self.value, self.remedy = settings, problem, value, remedy

    def with_prefix(self, prefix: str, names: Collection[str]) -> UserError:
        """The same error where the settings `names` have this prefix, as `num_images` is `eval_num_images`."""

        def renamed(text: str) -> str:
            for name in names:
                text = text.replace(f"`{name}`", f"`{prefix}{name}`")
            return text

        settings = [prefix + name if name in names else name for name in self.settings]
        return UserError(renamed(self.problem), setting=settings, value=self.value, remedy=renamed(self.remedy))


class UnknownNameError(UserError, KeyError):
    """A name that a record does not have: also what a mapping raises."""

    __str__ = Exception.__str__


@contextmanager
def user_errors(where: object = "", *, setting: str | Sequence[str] = (), value: object = None) -> Iterator[None]:
    """Raise a `ValueError` or `OSError` of this block as a `UserError` at a place or about a setting.

    With `where` a `UserError` passes as it is, for it names its own place.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if where and isinstance(error, UserError):
            raise
        raise UserError(f"{where}: {error}" if where else f"{error}", setting=setting, value=value) from None


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


class StoppedByOtherProcess(Exception):  # noqa: N818  (not an error of this process)
    """Another process stops the run and prints the reason; this one exits with `code` and prints nothing."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def at_least(settings: object, **limits: float) -> None:
    """`UserError` naming the first of these settings that is below its limit, or above `LARGEST`."""
    in_range(settings, **{name: (low, LARGEST) for name, low in limits.items()})


def in_range(settings: object, **limits: tuple[float, float]) -> None:
    """`UserError` naming the first of these settings that is not from low to high, both included.

    A setting that is None is unset; one that is a tuple is checked number by number. NaN is in no range; a low of
    `TINY` stands for above 0.
    """
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                lowest = "above 0" if low == TINY else f"{low} or more"
                highest = "" if high == LARGEST and number < low else f", at most {high:.15g}"
                raise UserError(f"expected {lowest}{highest}, got {number}", setting=name)
