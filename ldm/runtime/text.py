"""Text for people: messages, and the words of strangers made safe to print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable


def printable(text: object, limit: int | None = 200) -> str:
    """Untrusted text for a message: control and invisible characters escaped, shortened to `limit` characters."""
    text = str(text)
    part = text if limit is None else text[: limit + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in part)
    return escaped if limit is None or len(escaped) <= limit else escaped[: limit - 3] + "..."


def is_utf8(text: str) -> bool:
    """Whether text can be written; what the system gave in other bytes, or half a surrogate pair, can not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The text of an exception of any library in one line, whole words of it; its type where it has none.

    Not its first line: that often ends in "one of:".
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def suggest(word: str, known: Iterable[object]) -> str:
    """The remedy of a message about an unknown word: `known: a, b; did you mean "a"?`."""
    names = sorted(str(name) for name in known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"known: {listed or 'none'}" + (f'; did you mean "{close[0]}"?' if close else "")


def replace_unprintable(text: str, replacement: str = " ") -> str:
    """Text in which `replacement` stands for each control or invisible character."""
    return "".join(c if c.isprintable() else replacement for c in text)


def replace_settings(text: str, name_of: Callable[[str], str]) -> str:
    """A message with each setting in backticks replaced by `name_of(setting)`."""
    return re.sub(r"`([a-z][a-z0-9_]*)`", lambda match: name_of(match[1]), text)


def counted(count: int, what: str, plural: str = "") -> str:
    """`1 image`, `2 images`: the number with the first word in its plural, or with another `plural` of the whole."""
    noun, space, rest = what.partition(" ")
    many = plural or f"{noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}{space}{rest}"
    return f"{count:,} {what if count == 1 else many}"
