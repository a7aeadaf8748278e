"""Weights of event types by name."""

from __future__ import annotations

import pytest

from hisac_rec.config import validate
from hisac_rec.data.votes import types_that_vote, vote_weights
from hisac_rec.errors import UserError
from hisac_rec.methods.hisac.config import HiSACConfig

TYPES = ["like", "skip", "view"]


def test_types_that_are_not_named_vote_one() -> None:
    assert vote_weights({"skip": -0.5, "view": 0}, TYPES) == (1.0, -0.5, 0.0)
    assert types_that_vote({"skip": -0.5, "view": 0}, TYPES) == (0,)


def test_a_pattern_stands_for_several_types_and_a_name_goes_before_it() -> None:
    types = ["rating 0.5", "rating 3.0", "rating 3.5", "rating 4.0", "[x]*"]
    votes = {"rating [0-3]*": -1, "rating 3*": 0.5, "rating 3.5": 0, "[x]*": 2}
    assert vote_weights(votes, types) == (-1.0, -1.0, 0.0, 1.0, 2.0)
    # A log need not hold every kind that a definition knows.
    assert vote_weights({"rating 9*": 3}, types) == ()


@pytest.mark.parametrize("votes", [None, {}, {"like": 1.0}])
def test_where_all_vote_one_there_are_no_weights(votes: dict[str, float] | None) -> None:
    assert vote_weights(votes, TYPES) == ()
    assert types_that_vote(votes, TYPES) is None


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"x\.toml: .*no event type 'skipp'; did you mean 'skip'\?"):
        vote_weights({"skipp": -1}, TYPES, "x.toml: key 'history.votes'")


@pytest.mark.parametrize("weight", [1e9, float("nan"), "much"])
def test_a_weight_is_a_number_within_bounds(weight: object) -> None:
    with pytest.raises(UserError, match=r"votes"):
        validate(HiSACConfig, {"votes": {"like": weight}}, "m.toml")
