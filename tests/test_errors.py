"""Messages for mistyped names."""

from hypothesis import given
from hypothesis import strategies as st

from hisac_rec.errors import did_you_mean


def test_the_nearest_name_is_offered() -> None:
    assert did_you_mean("epoch", ["epochs", "seed"]) == "; did you mean 'epochs'?"


def test_all_names_are_listed_where_none_is_near() -> None:
    assert did_you_mean("zzz", ["din", "hisac"]) == "; valid names are: din, hisac"


def test_nothing_is_said_where_there_is_no_name() -> None:
    assert did_you_mean("anything", []) == ""


@given(st.lists(st.text("abcdef", min_size=1), min_size=1, unique=True))
def test_a_valid_name_is_nearest_to_itself(names: list[str]) -> None:
    assert did_you_mean(names[0], names) == f"; did you mean '{names[0]}'?"
