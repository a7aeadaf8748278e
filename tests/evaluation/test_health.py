"""Warnings name what is wrong, and only that."""

from __future__ import annotations

import pytest

from hisac_rec.evaluation.health import concerns

GOOD = {"auc": 0.75, "gauc": 0.7, "logloss": 0.5, "calibration": 1.02}


def test_nothing_to_say_of_a_sound_model() -> None:
    assert concerns(GOOD, GOOD | {"auc": 0.79}, {"item mean": 0.55}) == []
    assert concerns({}, None, None) == []


@pytest.mark.parametrize(
    ("unseen", "training", "trivial", "said"),
    [
        (GOOD, {"auc": 0.9}, {}, "learned by heart"),
        (GOOD, {}, {"item mean": 0.45, "another": 0.49}, "that of item mean 0.4500"),
        (GOOD | {"calibration": 1.4}, {}, {}, "1.40 positives are predicted"),
        (GOOD | {"calibration": 0.7}, {}, {}, "0.70 positives are predicted"),
    ],
)
def test_each_fault_is_named(
    unseen: dict[str, float], training: dict[str, float], trivial: dict[str, float], said: str
) -> None:
    (text,) = concerns(unseen, training, trivial, split="test")
    assert said in text
    assert "test" in text
