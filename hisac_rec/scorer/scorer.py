"""Score candidates for a user: the state from the store, the vectors from the tables, one program.

Legend: K agents, N candidates, S newest events, d width.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.evaluation.parts import sigmoid
from hisac_rec.scorer.artefact import Artefact
from hisac_rec.scorer.lookups import Lookups
from hisac_rec.scorer.state import StateFormat, UserState
from hisac_rec.scorer.store import Store, manifest_of

log = logging.getLogger(__name__)

ONLY_TASK = "label"
MOST_FRESH = 4096
"""Events of a user that are kept since his history was compressed; older ones are forgotten."""


@dataclass(frozen=True)
class Event:
    """Something a user did.

    Args:
        item: raw id.
        time: in the data set's unit.
        type: name of the event type; empty: the data set's first.
    """

    item: str
    time: int
    type: str = ""


class Scorer:
    """An exported model and a store. All methods may be called from many threads.

    Memory: tables and states are memory-mapped files; what is held is the program and the inputs
    of the calls under way.

    Args:
        artefact: the exported model.
        store: compressed histories of the same checkpoint.

    Raises:
        UserError: the store is of another checkpoint, or empty.
    """

    def __init__(self, artefact: Artefact, store: Store) -> None:
        self.artefact, self.store = artefact, store
        cache = manifest_of(store)
        if cache.run != artefact.manifest.run:
            raise UserError(
                f"{artefact.root}: exported from another checkpoint than the one whose histories "
                "are in the store; export and compress the same run"
            )
        self._states = StateFormat(cache)
        self._lookups = Lookups(artefact)
        self._types = {name: number for number, name in enumerate(artefact.manifest.event_types)}

    @classmethod
    def load(cls, model: Path, store: Store, *, verify: bool = True) -> Scorer:
        """Open an exported model, check its files and let it test itself.

        Args:
            model: its folder.
            store: of its users.
            verify: read every file and compare checksums.

        Raises:
            UserError: see :class:`~hisac_rec.scorer.artefact.Artefact`.
        """
        artefact = Artefact(model, verify=verify)
        off = artefact.self_test()
        log.info("%s: self-test passed, off by %.1g at most", model, off)
        return cls(artefact, store)

    def score(
        self, user: str, items: Sequence[str], *, time: int | None = None
    ) -> NDArray[np.float32]:
        """[N] probabilities of candidates for a user, of the model's main task.

        Args:
            user: raw id; one whom the store does not know has no history.
            items: raw ids; unknown ones score as the unknown item.
            time: of the request, in the data set's unit; None: now, or right after the newest event
                where the data set has no clock.
        """
        return next(iter(self.score_tasks(user, items, time=time).values()))

    def score_tasks(
        self, user: str, items: Sequence[str], *, time: int | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Task -> [N] probabilities, the main task first; for the arguments see :meth:`score`.

        A model of one task calls it "label" here.
        """
        logits = self.logits(user, self._lookups.items.ids(items), time=time)
        names = self.artefact.manifest.tasks or [ONLY_TASK]
        scores = sigmoid(logits).astype(np.float32).reshape(len(items), len(names))
        return dict(zip(names, scores.T, strict=True))

    def logits(
        self, user: str, ids: NDArray[np.int64], *, time: int | None = None
    ) -> NDArray[np.float32]:
        """Logits of candidates in dense ids, [N], or [N, M] of M > 1 tasks, the main one first.
        O(N (d^2 + K d)) for a history of any length.
        """
        if not len(ids):
            tasks = len(self.artefact.manifest.tasks)
            return np.zeros((0, tasks) if tasks else 0, np.float32)
        state = self.state(user)
        if time is None:
            time = int(clock.time()) if self.artefact.manifest.has_clock else _after(state)
        return self.artefact.logits(self.inputs(state, ids, time)).numpy()

    def state(self, user: str) -> UserState:
        """What is kept of a user, the events since included."""
        data = self.store.get("state", user)
        state = UserState() if data is None else self._states.decode(data)
        fresh = _read_fresh(self.store.get("fresh", user))
        fresh = fresh[fresh[:, 2] >= state.compressed]
        if not len(fresh):
            return state
        item, kind, time = fresh.T
        return state.with_events(item, kind, time, max(1, self.artefact.manifest.recent))

    def update_history(self, user: str, events: Sequence[Event]) -> None:
        """Add events that happened since the history was compressed.

        They count at once as newest events and in the history's length; the agents change when
        the history is compressed again.

        Raises:
            UserError: an event type that the data set does not have.
        """
        kinds = [self._type(event.type) for event in events]
        items = self._lookups.items.ids([event.item for event in events])
        times = np.array([event.time for event in events], np.int64)
        new = np.stack([items, np.array(kinds, np.int64), times], axis=1)

        def add(before: bytes | None) -> bytes:
            together = np.concatenate([_read_fresh(before), new])
            order = np.argsort(together[:, 2], kind="stable")
            return together[order][-MOST_FRESH:].tobytes()

        if len(new):
            self.store.change("fresh", user, add)

    def inputs(self, state: UserState, ids: NDArray[np.int64], time: int) -> dict[str, Tensor]:
        """What the exported program takes, of one request."""
        manifest, items = self.artefact.manifest, self._lookups.items
        vectors, events, path = state.vectors, state.events, state.path
        if vectors is None or not len(vectors):  # one agent that is not there
            vectors = np.zeros((1, manifest.dim), np.float32)
            events, path = np.zeros(1, np.float32), np.full(1, -1)
        against, against_path = state.against, state.against_path
        if not len(against):  # likewise
            against, against_path = np.zeros(1, np.float32), np.full(1, -1)
        seen = state.seen
        if manifest.max_history is not None:
            seen = min(seen, manifest.max_history)
        newest = slice(max(0, len(state.newest_item) - manifest.recent), None)
        recent = self._lookups.recent(
            state.user,
            state.newest_item[newest],
            state.newest_type[newest],
            time - state.newest_time[newest],
        )
        coded = items.seen_by(state.user, ids)
        arrays = {
            "vectors": vectors,
            "events": events,
            "path": path,
            "length": np.array([seen]),
            "users": self._lookups.users(state.user, state.features),
            "recent": recent,
            "candidates": self._lookups.candidates(state.user, ids),
            "codes": items.codes[coded].astype(np.int64),
            "placed": np.array(items.placed[coded]),
            "against": against,
            "against_path": against_path,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    def _type(self, name: str) -> int:
        if not name or not self._types:
            return 0
        if name not in self._types:
            raise UserError(
                f"event type '{name}': the data set has no such type"
                f"{did_you_mean(name, list(self._types))}"
            )
        return self._types[name]


def _read_fresh(data: bytes | None) -> NDArray[np.int64]:
    """[n, 3] item, type, time."""
    return np.frombuffer(data or b"", np.int64).reshape(-1, 3)


def _after(state: UserState) -> int:
    return int(state.newest_time.max(initial=0)) + 1
