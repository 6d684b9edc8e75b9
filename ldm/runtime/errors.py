"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake that its maker can mend: one line saying what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


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
            raise UserError(f"--{name.replace('_', '-')}: expected {limit} or more, got {getattr(settings, name)}")


def suggest(word: str, known: object) -> str:
    """The tail of a message about an unknown word: `; known: a, b; did you mean "a"?`."""
    import difflib

    names = sorted(str(name) for name in known)  # type: ignore[attr-defined]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"; known: {listed or 'none'}" + (f'; did you mean "{close[0]}"?' if close else "")
