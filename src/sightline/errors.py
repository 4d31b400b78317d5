"""Errors that a person reads: what is wrong, where it stands, and the command to type next."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SightlineError", "UserError"]


class SightlineError(Exception):
    """Base class of every error this library raises on purpose."""


class UserError(SightlineError):
    """Bad input. The command line prints it as one line, then its rows if it has any, and exits with code 2.

    Args:
        what: the problem in plain words.
        where: file, row id or key in which it was found.
        hint: the next command to type, or the change to make.
        rows: a short table below that line.

    Example:
        >>> str(UserError("unknown key 'lrr'", where="recipe.yaml: optim", hint="did you mean 'lr'?"))
        "recipe.yaml: optim: unknown key 'lrr' (did you mean 'lr'?)"
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", rows: Sequence[str] = ()) -> None:
        self.what, self.where, self.hint, self.rows = what, where, hint, tuple(rows)
        self.line = f"{where + ': ' if where else ''}{what}{f' ({hint})' if hint else ''}"
        super().__init__("\n  ".join((self.line, *self.rows)))
