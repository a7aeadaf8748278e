"""What is wrong with a trained model, told from its metrics beside those of its training rows.

Legend: metrics are by name, "auc", "gauc", "logloss", "calibration"; one that is absent is
undefined.
"""

from __future__ import annotations

from collections.abc import Mapping

GAP = 0.08
"""A training AUC so far above that of unseen rows is memory, not knowledge."""
CALIBRATED = (0.8, 1.25)
"""Sum of probabilities over sum of labels, where a probability can still be used as one."""


def concerns(
    unseen: Mapping[str, float],
    training: Mapping[str, float] | None = None,
    trivial: Mapping[str, float] | None = None,
    *,
    split: str = "valid",
) -> list[str]:
    """Warnings in words, each with its likely cause and what to do; empty where all is well.

    Args:
        unseen: metrics on rows that training did not read.
        training: the same metrics on a sample of the training rows.
        trivial: name -> logloss on the unseen rows of predictors that know no history.
        split: where the unseen rows are from.
    """
    found = []
    if training is not None and "auc" in training and "auc" in unseen:
        gap = training["auc"] - unseen["auc"]
        if gap > GAP:
            found.append(
                f"AUC is {training['auc']:.3f} on training rows, {unseen['auc']:.3f} on {split}: "
                "rare ids are learned by heart, or something that a training row reads was made "
                "from its label (hisac-rec semantic-ids shows whether codes were). Try fewer "
                "passes (train.epochs), a larger train.sparse_caution or train.unknown_rate"
            )
    worse = {
        name: value
        for name, value in (trivial or {}).items()
        if "logloss" in unseen and unseen["logloss"] > value
    }
    if worse:
        name = min(worse, key=lambda one: worse[one])
        found.append(
            f"logloss on {split} is {unseen['logloss']:.4f}, that of {name} {worse[name]:.4f}: "
            "the probabilities are of no use, whatever the order is worth. Training went on for "
            "too long, its rates are too high, or the labels have changed since"
        )
    low, high = CALIBRATED
    calibration = unseen.get("calibration")
    if calibration is not None and not low <= calibration <= high:
        found.append(
            f"on {split} {calibration:.2f} positives are predicted for each that is there "
            f"({low:g} to {high:g} is sound): the share of positives has changed, or "
            "ids that are new there read rows that training never moved (train.unknown_rate)"
        )
    return found
