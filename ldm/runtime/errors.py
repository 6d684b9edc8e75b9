"""The exceptions that end a command, and the words of their messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


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
        self.settings, self.problem, self.remedy = settings, problem, remedy


def with_names(text: str, name_of: Callable[[str], str]) -> str:
    """A message with each setting in backticks replaced by `name_of(setting)`."""
    return re.sub(r"`([a-z][a-z0-9_]*)`", lambda match: name_of(match[1]), text)


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


class StoppedByOtherProcess(Exception):  # noqa: N818  (not an error of this process)
    """Another process of the run stops it and says why; this one leaves with `code` and in silence."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def at_least(settings: object, **limits: int) -> None:
    """`UserError` naming the flag of the first of these settings that is below its limit."""
    for name, limit in limits.items():
        if not getattr(settings, name) >= limit:
            raise UserError(f"expected {limit} or more, got {getattr(settings, name)}", setting=name)


def suggest(word: str, known: object) -> str:
    """The remedy of a message about an unknown word: `known: a, b; did you mean "a"?`."""
    import difflib

    names = sorted(str(name) for name in known)  # type: ignore[attr-defined]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"known: {listed or 'none'}" + (f'; did you mean "{close[0]}"?' if close else "")
