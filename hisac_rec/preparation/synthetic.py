"""Synthetic long histories with a known truth.

What is planted, so that a method can be measured against what is really there:

- a *tree of interests*: a node's vector is its parent's plus a smaller random offset; items
  sit at the leaves, their content embedding is the leaf's vector plus noise;
- users with a few *head* interests, met all the time, and more *tail* interests, met in rare
  sessions spread over the whole history: the newest 50 events miss most of them;
- *clicks* drawn from ``p = sigmoid(bias + quality(item) + user bias + gain * affinity)``;
  affinity is 1 for head interests, ``tail_affinity`` for tail interests however rarely they
  were met, ``sibling_affinity`` for other leaves under the same parent, else 0;
- p is kept beside the labels, so the AUC of the oracle is known;
- items that appear only in the course of the period, users' weak ``segment``, items' noisy
  ``category``.

One clock for all users: histories span the whole period; training requests lie in
[0.6, 0.8) of it, valid in [0.8, 0.9), test in [0.9, 1). Users are made in chunks of their
own seed, so memory is O(chunk) and any chunk can be made alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import Feature, Split
from hisac_rec.preparation.blocks import CutRules, EventBlock
from hisac_rec.preparation.source import Catalogue
from hisac_rec.preparation.synthetic_config import SyntheticConfig

CHUNK_USERS, CHUNK_EVENTS = 512, 1_000_000
"""Users made at once: at most the first, fewer where histories are long."""
START = 1_700_000_000
PERIOD = 90 * 86_400
EVENT_GAP = 30
"""Seconds: first moment, length of the period, time between the events of a session."""
TRAIN_FROM, VALID_FROM, TEST_FROM = 0.6, 0.8, 0.9
"""Shares of the period at which requests begin and splits change."""
SEGMENTS = 8
LIVES = 12
"""Parts of the period in which a catalogue that turns over is another one."""
LIKE_RATE, NOISE_LIKE_RATE = 0.3, 0.02
"""Share of "like" among history events of an interest, and among random ones."""
LEVEL_SHRINK = 0.5
"""Length of a node's offset from its parent, relative to the parent's own."""

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class SyntheticSource:
    """The generator; see the module's docstring and :class:`SyntheticConfig`.

    Args:
        config: sizes, weights, seed.
    """

    event_types = ["view", "like"]
    has_oracle = True
    tasks: list[str] = []

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.users, self.items = config.users + 1, config.items + 1
        rng = np.random.default_rng([config.seed, 0])
        self._make_items(rng)
        self._make_users(rng)

    def rules(self, split: Split) -> CutRules:
        """Requests are exact: the generator groups them itself."""
        return CutRules()

    def blocks(self, first: int = 0) -> Iterator[EventBlock]:
        """Histories and requests, a chunk of users at a time, from chunk ``first`` on."""
        size = min(max(CHUNK_EVENTS // self.config.length_median, 1), CHUNK_USERS)
        for chunk, start in enumerate(range(1, self.users, size)):
            if chunk >= first:
                rng = np.random.default_rng([self.config.seed, 1 + chunk])
                yield self._block(rng, np.arange(start, min(start + size, self.users)))

    def negatives(self, blocks: Iterator[EventBlock]) -> None:
        """None: requests hold what was not clicked."""

    def catalogue(self, seen: NDArray[np.bool_]) -> Catalogue:
        """Items: noisy ``category`` (all known in the training period) and ``content``."""
        del seen  # a category names a branch of the tree, not a thing that appears in time
        ids = np.arange(self.items)
        content = pa.FixedSizeListArray.from_arrays(
            pa.array(self.content.reshape(-1)), self.config.content_dim
        )
        table = pa.table(
            {
                "item": pa.array(ids, pa.int32()),
                "raw_id": pa.array([None, *map(str, ids[1:])], pa.string()),
                "category": pa.array(self.category, pa.int32()),
                "content": content,
            }
        )
        names = [None, *(f"branch {i}" for i in range(self.categories))]
        return Catalogue(
            features=[Feature(name="category", rows=len(names))],
            content_dim=self.config.content_dim,
            has_text=False,
            values_mean={"category": 1.0},
            vocabularies={"category": pa.array(names, pa.string())},
            batches=iter([table]),
        )

    def affinity(self, leaf: Ids, heads: Ids, tails: Ids) -> Floats:
        """True interest in leaves.

        Args:
            leaf: [M] leaves.
            heads: [M, head_interests] head interests of the user who meets each leaf.
            tails: [M, tail_interests] tail interests.

        Returns:
            [M] in [0, 1].
        """
        siblings = self.config.branches[-1]
        parents = np.concatenate([heads, tails], axis=1) // siblings
        result = self.config.sibling_affinity * (parents == (leaf // siblings)[:, None]).any(1)
        in_tail = self.config.tail_affinity * (tails == leaf[:, None]).any(1)
        return np.maximum.reduce([result, in_tail, (heads == leaf[:, None]).any(1).astype(float)])

    def _make_items(self, rng: np.random.Generator) -> None:
        config, leaves = self.config, self.config.leaves
        nodes = np.zeros((1, config.content_dim))
        for level, children in enumerate(config.branches):
            nodes = np.repeat(nodes, children, axis=0)
            nodes += _directions(rng, nodes.shape) * LEVEL_SHRINK**level
        leaf = np.concatenate([np.arange(leaves), rng.integers(leaves, size=config.items - leaves)])
        rng.shuffle(leaf)
        self.leaf = np.concatenate([[-1], leaf])  # of item i; the unknown item has none

        self.content = np.zeros((self.items, config.content_dim), np.float32)
        noise = rng.standard_normal((config.items, config.content_dim))
        noise *= config.content_noise / np.sqrt(config.content_dim)
        self.content[1:] = nodes[leaf] + noise

        siblings = config.branches[-1]
        self.categories = leaves // siblings
        wrong = rng.random(config.items) < config.category_noise
        other = rng.integers(self.categories, size=config.items)
        self.category = np.concatenate([[0], 1 + np.where(wrong, other, leaf // siblings)])

        self.quality = np.concatenate([[0.0], rng.normal(0, config.quality_scale, config.items)])
        weight = np.exp(self.quality[1:] + rng.normal(0, 0.5, config.items))  # good and popular
        self._by_leaf = 1 + np.argsort(leaf, kind="stable")
        self._cumulated = np.concatenate([[0.0], np.cumsum(weight[self._by_leaf - 1])])
        self._leaf_start = np.searchsorted(leaf[self._by_leaf - 1], np.arange(leaves + 1))

        self._always = self._by_leaf[self._leaf_start[:-1]]  # one item per leaf is never fresh
        fresh = rng.random(self.items) < config.fresh_items
        fresh[self._always] = False
        self.release = np.where(fresh, START + PERIOD * rng.random(self.items), START)

    def _make_users(self, rng: np.random.Generator) -> None:
        self.user_bias = rng.normal(0, 1, self.users)
        noisy = (self.user_bias + rng.normal(0, 1, self.users)) / np.sqrt(2)
        edges = np.quantile(noisy, np.linspace(0, 1, SEGMENTS + 1)[1:-1])
        segment = (1 + np.digitize(noisy, edges)).astype(np.int32)
        segment[0] = 0
        self.user_features = [Feature(name="segment", rows=SEGMENTS + 1)]
        self.user_values = {"segment": segment}
        names = [None, *(f"segment {i}" for i in range(SEGMENTS))]
        self.user_vocabularies = {
            "user": pa.array([None, *map(str, range(1, self.users))], pa.string()),
            "user_segment": pa.array(names, pa.string()),
        }

    def _draw_items(self, rng: np.random.Generator, leaf: Ids, time: Ids) -> Ids:
        """Draw an item of each leaf by popularity; unreleased ones fall back to an old one."""
        start, stop = self._leaf_start[leaf], self._leaf_start[leaf + 1]
        low, high = self._cumulated[start], self._cumulated[stop]
        place = np.searchsorted(
            self._cumulated, low + rng.random(len(leaf)) * (high - low), "right"
        )
        place = np.clip(place - 1, start, stop - 1)
        if self.config.turnover:
            place = self._living(place, start, stop, time)
        item = self._by_leaf[place]
        return np.where(self.release[item] <= time, item, self._always[leaf])

    def _living(self, place: Ids, start: Ids, stop: Ids, time: Ids) -> Ids:
        """Places of items that live at ``time`` instead of others of the same leaf: the first items
        of a leaf live always, of the others every twelfth lives in the same twelfth of the period.
        """
        always = np.maximum(1, (stop - start) - (self.config.turnover * (stop - start)).astype(int))
        part = (LIVES * (time - START) // PERIOD).clip(0, LIVES - 1)
        passing = place - start - always
        now = passing - passing % LIVES + part
        now = np.where(now >= stop - start - always, now - LIVES, now)
        return np.where(passing < 0, place, np.where(now < 0, start, start + always + now))

    def _block(self, rng: np.random.Generator, users: Ids) -> EventBlock:
        """Everything that happens to some users, in time order."""
        config = self.config
        heads = rng.integers(config.leaves, size=(len(users), config.head_interests))
        tails = rng.integers(config.leaves, size=(len(users), config.tail_interests))
        history = self._histories(rng, heads, tails)
        shown = self._candidates(rng, self.user_bias[users], heads, tails)

        both = _Events._make(np.concatenate(pair) for pair in zip(history, shown, strict=True))
        order = np.lexsort((both.time, both.row))  # stable
        both = _Events._make(column[order] for column in both)
        late = both.time - START
        split = (late >= PERIOD * VALID_FROM).astype(np.int8) + (late >= PERIOD * TEST_FROM)
        is_candidate = order >= len(history.row)
        return EventBlock(
            user=users[both.row].astype(np.int32),
            item=both.item.astype(np.int32),
            time=both.time,
            type=both.type.astype(np.int8),
            is_history=~is_candidate,
            is_candidate=is_candidate,
            label=both.label.astype(np.float32),
            split=split.astype(np.int8),
            group=both.request.astype(np.uint64),
            probability=both.probability.astype(np.float32),
        )

    def _histories(self, rng: np.random.Generator, heads: Ids, tails: Ids) -> _Events:
        """Sessions of one interest each, at random moments of the whole period."""
        config, users = self.config, len(heads)
        drawn = rng.lognormal(np.log(config.length_median), config.length_sigma, users)
        length = np.clip(drawn, config.length_min, config.length_max).astype(np.int64)
        row = np.repeat(np.arange(users), length)  # [E]
        opens = rng.random(len(row)) < 1 / config.session_length
        opens[np.cumsum(length) - length] = True
        first = np.flatnonzero(opens)  # [S] first event of each session
        session = np.cumsum(opens) - 1  # [E]

        begin = PERIOD * rng.random(len(first))
        begin = begin[np.lexsort((begin, row[first]))]  # sessions of a user in time order
        interest = heads[row[first], rng.integers(config.head_interests, size=len(first))]
        if config.tail_interests:  # taken in turns, so that none is missed for long
            is_tail = rng.random(len(first)) < config.tail_weight
            turn = np.cumsum(is_tail) % config.tail_interests
            interest = np.where(is_tail, tails[row[first], turn], interest)

        within = np.arange(len(row)) - first[session]
        time = (START + begin[session]).astype(np.int64) + EVENT_GAP * within
        noise = rng.random(len(row)) < config.noise_weight
        anywhere = rng.integers(config.leaves, size=len(row))
        item = self._draw_items(rng, np.where(noise, anywhere, interest[session]), time)
        liked = rng.random(len(row)) < np.where(noise, NOISE_LIKE_RATE, LIKE_RATE)
        nothing = np.zeros(len(row), np.int64)
        return _Events(row, item, time, liked.astype(np.int64), nothing, nothing, nothing)

    def _candidates(
        self, rng: np.random.Generator, user_bias: Floats, heads: Ids, tails: Ids
    ) -> _Events:
        """Candidates of all requests, and whether they are clicked."""
        config, users = self.config, len(heads)
        windows = (
            (TRAIN_FROM, VALID_FROM, config.train_requests),
            (VALID_FROM, TEST_FROM, config.valid_requests),
            (TEST_FROM, 1.0, config.test_requests),
        )
        moments = [low + (high - low) * rng.random((users, n)) for low, high, n in windows]
        moment = np.concatenate(moments, axis=1).reshape(-1)  # [R]
        request = np.repeat(np.arange(len(moment)), config.candidates)  # [C]
        row = request // (len(moment) // users)
        time = (START + PERIOD * moment[request]).astype(np.int64)

        kind = rng.random(len(row))
        leaf = rng.integers(config.leaves, size=len(row))
        of_head = heads[row, rng.integers(config.head_interests, size=len(row))]
        leaf = np.where(kind < config.head_candidates, of_head, leaf)
        if config.tail_interests:
            of_tail = tails[row, rng.integers(config.tail_interests, size=len(row))]
            leaf = np.where(kind >= 1 - config.tail_candidates, of_tail, leaf)
        item = self._draw_items(rng, leaf, time)

        logit = config.bias + self.quality[item] + config.user_bias_scale * user_bias[row]
        logit += config.gain * self.affinity(leaf, heads[row], tails[row])
        probability = 1 / (1 + np.exp(-logit))
        label = (rng.random(len(row)) < probability).astype(np.int64)
        return _Events(row, item, time, np.zeros_like(row), request, label, probability)


class _Events(NamedTuple):
    """Flat events of a chunk: row of the user in it, and so on, each [E]."""

    row: Ids
    item: Ids
    time: Ids
    type: Ids
    request: Ids
    label: Ids
    probability: NDArray[Any]


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Random unit vectors, [n, dim]."""
    vectors = rng.standard_normal(shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
