"""The one exception type for things a person can mend.

Everything below the command line raises :class:`UserError` for bad input: a message that
names the file, the key or row, what was expected and what to do. The command line prints
it without a traceback and exits with code 2. Any other exception is a defect of ours and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input that the person at the keyboard can mend; the message says how."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest valid name, or the list of names.

    Args:
        name: what was given.
        valid: the names that exist.
    """
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; valid names are: {', '.join(names)}" if names else ""


class EndedError(Exception):
    """A job ended before it was done, through no fault of the input; it can be gone on with."""

    exit_code = 1


class AskedToEndError(EndedError):
    """A signal asked the job to end, and what it had done was saved."""

    exit_code = 75


class LostRankError(EndedError):
    """Another rank of the job failed, was killed or did not arrive in time."""

    exit_code = 76
