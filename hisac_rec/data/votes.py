"""How much an event of each type votes for the interest that its item belongs to.

A like is not a skip: a definition (``[history] votes``) or a model file (``history.votes``) gives
types of events a weight. 1 is what a type votes that is not named; 0: its events are read, and vote
for nothing; below 0: they count against. A name may be a pattern of several: "rating [0-3]*".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, TypeAlias

from pydantic import Field

from hisac_rec.errors import UserError, did_you_mean

WILDCARD = re.compile(r"[*?\[]")
"""What makes a name a pattern."""

Votes: TypeAlias = dict[str, Annotated[float, Field(ge=-1000, le=1000)]]
"""Event type, or a pattern of several (``*``, ``?``, ``[0-3]``) -> weight."""


def vote_weights(
    votes: Mapping[str, float] | None, event_types: Sequence[str], key: str = "history.votes"
) -> tuple[float, ...]:
    """The weight of each event type, in the order of their numbers.

    Args:
        votes: weights by name or pattern; a type's own name goes before patterns, and of those
            the first that fits; None: every event votes 1.
        event_types: names of the data set's types.
        key: how messages name ``votes``.

    Returns:
        As many numbers as there are types; none where every event votes 1.

    Raises:
        UserError: a name that is no pattern is no event type of the data set.
    """
    votes = votes or {}
    for name in votes:
        # A pattern may fit nothing: a log need not hold every kind that a definition knows.
        if name not in event_types and not WILDCARD.search(name):
            raise UserError(
                f"{key}: the data set's history has no event type '{name}'"
                f"{did_you_mean(name, event_types)}"
            )

    def weight_of(kind: str) -> float:
        if kind in votes:
            return votes[kind]
        return next((votes[name] for name in votes if fnmatchcase(kind, name)), 1.0)

    weights = tuple(float(weight_of(kind)) for kind in event_types)
    return weights if any(weight != 1.0 for weight in weights) else ()


def types_that_vote(
    votes: Mapping[str, float] | None, event_types: Sequence[str]
) -> tuple[int, ...] | None:
    """Numbers of the types whose events vote for something; None: all of them."""
    weights = vote_weights(votes, event_types)
    return tuple(n for n, weight in enumerate(weights) if weight > 0) if weights else None
