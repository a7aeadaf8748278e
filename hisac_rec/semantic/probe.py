"""How well semantic IDs alone tell labels: on training rows, and on rows that no fit has seen.

The score of a candidate is the share of its history that lies on the candidate's node of the tree,
summed over the levels: no training, no parameters. Codes that were made from the labels of the
training rows tell those better than others, and whatever is trained on such rows will trust codes
more than they deserve. So the two should be close.

Legend: R requests, T events, N candidates, D levels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hisac_rec.config import Strict
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.inputs import InputConfig, build_input_spec
from hisac_rec.data.jagged import Ints, take_ranges
from hisac_rec.data.units import RequestTable, list_units, read_unit
from hisac_rec.evaluation.metrics import auc
from hisac_rec.semantic.store import Semantics
from hisac_rec.semantic.views import views_of_users

MOST_CANDIDATES = 50_000
"""Candidates of a split that are looked at, about."""
MOST_EVENTS = 20_000_000
"""History events of a split that are looked at, about."""
GAP = 0.03
"""A difference of AUC above this is a warning."""


class Probe(Strict):
    """AUC of the codes alone; None where it is undefined (one class, or no rows)."""

    train: float | None
    """On a sample of training candidates."""
    valid: float | None
    """On a sample of validation candidates."""

    @property
    def gap(self) -> float:
        """How much better training labels are told; 0 where that is undefined."""
        if self.train is None or self.valid is None:
            return 0.0
        return self.train - self.valid


def probe(data: PreparedData, semantics: Semantics) -> Probe:
    """Look at a sample of both splits. O(events + candidates) of the samples, times D."""
    views = views_of_users(data, semantics.views)
    return Probe(
        train=_auc_of(data, "train", semantics, views),
        valid=_auc_of(data, "valid", semantics, views),
    )


def _auc_of(
    data: PreparedData, split: Split, semantics: Semantics, views: NDArray[np.int64]
) -> float | None:
    if not data.manifest.splits[split].requests or not (data.root / split).is_dir():
        return None
    spec = build_input_spec(InputConfig(user=[], candidate=[], history=[]), data.manifest, ())
    labels, scores = [], []
    candidates = events = 0
    units = list_units(data, split, shards=16)
    for number in np.random.default_rng(0).permutation(len(units)):
        table = read_unit(units[number], data.manifest, spec)
        labels.append(table.candidate_label)
        scores.append(_scores(table, semantics, views))
        candidates += len(table.candidate_label)
        events += int(table.history_lengths().sum())
        if candidates >= MOST_CANDIDATES or events >= MOST_EVENTS:
            break
    label, score = np.concatenate(labels), np.concatenate(scores)
    found = auc(label[~np.isnan(label)], score[~np.isnan(label)])
    return found if math.isfinite(found) else None


def _scores(
    table: RequestTable, semantics: Semantics, views: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[N] of the candidates of a table."""
    lengths, counts = table.history_lengths(), table.candidate_lengths()
    events = take_ranges(table.history_start, lengths)
    candidates = take_ranges(table.candidate_start, counts)
    items = len(semantics.codes) // semantics.views
    view = views[table.users["user"][table.user_row]] * items
    event_request = np.repeat(np.arange(len(lengths)), lengths)
    candidate_request = np.repeat(np.arange(len(counts)), counts)
    of_event = table.history_item[events].astype(np.int64) + view[event_request]
    of_candidate = table.candidate_item[candidates].astype(np.int64) + view[candidate_request]
    event_placed, placed = semantics.known[of_event], semantics.known[of_candidate]
    total = np.maximum(lengths, 1)[candidate_request]
    score = np.zeros(len(of_candidate))
    for level, nodes in enumerate(semantics.prefix_counts):
        node = semantics.prefix_ids[:, level]
        met, votes = np.unique(
            (event_request * nodes + node[of_event])[event_placed], return_counts=True
        )
        score += _votes(met, votes, candidate_request * nodes + node[of_candidate]) / total
    return np.where(placed, score, 0.0)


def _votes(met: Ints, votes: Ints, wanted: Ints) -> Ints:
    """[N] how often each wanted key was met."""
    if not len(met):
        return np.zeros(len(wanted), np.int64)
    at = np.searchsorted(met, wanted).clip(max=len(met) - 1)
    return np.where(met[at] == wanted, votes[at], 0)
