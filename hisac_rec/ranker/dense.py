"""Everything dense after the lookups: events, history method, interaction, logits.

Legend: R requests, T events, N candidates, B bags, K tasks, d width.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torchrec.sparse.jagged_tensor import JaggedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputSpec, Side
from hisac_rec.data.tasks import Task
from hisac_rec.methods.base import Candidates, History, HistoryMethod, request_of_rows
from hisac_rec.methods.recent import newest_events
from hisac_rec.ranker.arches import DenseArch, OverArch
from hisac_rec.ranker.config import RankerConfig
from hisac_rec.ranker.interaction import InteractionArch
from hisac_rec.ranker.sparse import EventEncoder, LookedUp

CONTEXT_FEATURES = 1
"""log(1 + history length)."""

LENGTH = "length"
"""Name of the history's length [R] in what a cache holds."""


class DenseRanker(nn.Module):
    """Everything after the lookups: events, history method, interaction, logit.

    Args:
        config: sizes.
        spec: the model's lookups.
        method: the history method.
        dim: d.
    """

    def __init__(
        self, config: RankerConfig, spec: InputSpec, method: HistoryMethod, dim: int
    ) -> None:
        super().__init__()
        self.method = method
        self.user_lookups = spec.of_side("user")
        self.candidate_lookups = spec.of_side("candidate")
        self.vector_sides = spec.vector_sides
        pooled = spec.pooled()
        self.lookup_keys = tuple(lk.key for lk in spec.lookups if lk.table not in pooled)
        self.managed_keys = frozenset(lk.key for lk in spec.lookups if lk.managed)
        self.uses_history = method.uses_history
        self.recent = config.recent if method.uses_history else 0
        history = spec.of_side("history")
        if self.uses_history:
            self.events = EventEncoder(spec, dim, config.age_buckets)
        # A candidate is embedded as an event without type and age, from the same tables.
        columns = {lookup.column for lookup in history}
        self.as_event = [
            number for number, lk in enumerate(self.candidate_lookups) if lk.column in columns
        ]
        self.dense = DenseArch(CONTEXT_FEATURES, config.dense_layers, dim)
        shared = 1 + len(self.user_lookups) + int(self.recent > 0)
        own = len(self.candidate_lookups) + int(self.uses_history) * method.interests
        self.interaction = InteractionArch(shared, own, dim, config.include_vectors)
        main, *further = spec.tasks
        # The main task's tower is called what it is called where it is the only one.
        self.over = self._tower(main, config)
        self.further = tuple(f"over_{task.name}" for task in further)
        for name, task in zip(self.further, further, strict=True):
            self.add_module(name, self._tower(task, config))

    def _tower(self, task: Task, config: RankerConfig) -> OverArch:
        layers = config.over_layers if task.over_layers is None else list(task.over_layers)
        return OverArch(self.interaction.out_dim, layers, config.dropout)

    def compile_arches(self) -> None:
        """Compile in place what has one shape for all methods; names of parameters stay.

        The number of candidates is left open, so that a batch of another size compiles nothing.
        """
        self.interaction.compile(dynamic=True)
        for tower in self.towers():
            tower.compile(dynamic=True)

    def towers(self) -> list[OverArch]:
        """The over arch of each task, the main one's first."""
        return [self.over, *(self.get_submodule(name) for name in self.further)]  # type: ignore[list-item]

    def forward(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        bags: dict[str, Tensor],
        vectors: dict[str, JaggedTensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the method's [N] auxiliary logits where it trains with some.

        Logits are [N] of one task, [N, K] of several, the main one first.

        Args:
            batch: the batch without its ids.
            rows: looked-up rows per key.
            bags: [B, d] sums per table that is read by bags.
            vectors: frozen semantic vectors per side, or None.
        """
        found = LookedUp(batch, rows, bags)
        lengths = batch.memory.get(LENGTH, batch.history_offsets.diff())
        per_candidate = list(map(found.of, self.candidate_lookups))
        candidates = Candidates(
            offsets=batch.candidate_offsets,
            values=self.as_events(per_candidate, batch.num_candidates),
            codes=batch.candidate_codes,
            placed=batch.candidate_placed,
            features=batch.candidate_features,
            vectors=self._of_side(vectors, "candidate"),
            request=request_of_rows(batch.candidate_offsets, batch.num_candidates),
        )
        memory, recent, auxiliary = None, None, None
        if self.uses_history:
            history = self._history(batch, found, vectors)
            if self.recent:
                recent = _mean(*newest_events(history, self.recent))
            memory = self._compress(history, batch)
        users = list(map(found.of, self.user_lookups))
        logits = self.score(lengths, users, recent, memory, per_candidate, candidates)
        if self.training and self.uses_history and self.method.auxiliary_weight:
            auxiliary = self.method.auxiliary(memory, candidates).float()
        return logits, auxiliary

    def score(
        self,
        lengths: Tensor,
        users: list[Tensor],
        recent: Tensor | None,
        memory: Any,
        per_candidate: list[Tensor],
        candidates: Candidates,
    ) -> Tensor:
        """Logits of :meth:`forward`: all that is done once histories are compressed.

        Args:
            lengths: [R] of the histories.
            users: [R, d] of each user-side lookup.
            recent: [R, d] mean of the newest events, where there is a short sequence.
            memory: what the history method's ``compress`` or ``restore`` gave.
            per_candidate: [N, d] of each candidate-side lookup.
            candidates: the same, for the history method.
        """
        context = self.dense(torch.log1p(lengths.float()).unsqueeze(1))
        per_request = [context, *users, *([] if recent is None else [recent])]
        if self.uses_history:
            with record_function("history: read"):
                interests = self.method.read(memory, candidates).unbind(1)
            per_candidate = [*per_candidate, *interests]
        with record_function("interaction and over arch"):
            shared, own = torch.stack(per_request, dim=1), torch.stack(per_candidate, dim=1)
            crossed = self.interaction(shared, own, candidates.request)
            logits: Tensor = self.over(crossed)
            if self.further:
                others = [tower(crossed) for tower in self.towers()[1:]]
                logits = torch.stack([logits, *others], dim=1)
        return logits.float()

    def hold(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        bags: dict[str, Tensor],
        vectors: dict[str, JaggedTensor] | None,
    ) -> dict[str, Tensor]:
        """What a cache is to hold of the histories, by name: :attr:`RequestBatch.memory`."""
        history = self._history(batch, LookedUp(batch, rows, bags), vectors)
        memory = vars(self._compress(history, batch))
        held = {name: value for name, value in memory.items() if isinstance(value, Tensor)}
        return held | {LENGTH: batch.history_offsets.diff()}

    def _compress(self, history: History, batch: RequestBatch) -> Any:
        with record_function("history: compress"):
            if not batch.memory:
                return self.method.compress(history)
            held = {name: value for name, value in batch.memory.items() if name != LENGTH}
            return self.method.restore(held, history)

    def _history(
        self,
        batch: RequestBatch,
        found: LookedUp,
        vectors: dict[str, JaggedTensor] | None,
    ) -> History:
        semantic = self._of_side(vectors, "history")  # of the distinct items
        return History(
            offsets=batch.history_offsets,
            events=self.events(found, batch),
            codes=batch.history_codes,
            features=batch.history_features,
            type=batch.history_type,
            placed=batch.history_placed,
            vectors=None if semantic is None else semantic.index_select(0, batch.history_rows),
            age=batch.history_age,
        )

    def as_events(self, per_candidate: list[Tensor], count: int) -> Tensor:
        """[N, d]: what candidates look up in the tables that events read, summed."""
        shared = [per_candidate[number] for number in self.as_event]
        if shared:
            return reduce(torch.add, shared)
        weight = self.over.out.weight
        return torch.zeros((count, self.method.dim), device=weight.device)

    def _of_side(self, vectors: dict[str, JaggedTensor] | None, side: Side) -> Tensor | None:
        # A sharded collection gives a lazy result, which can be asked for a key alone.
        if vectors is None or side not in self.vector_sides:
            return None
        # Frozen: the table stays bit-identical because no gradient ever reaches it.
        return vectors[f"{side}.vector"].values().detach()


def _mean(events: Tensor, filled: Tensor) -> Tensor:
    """[R, S, d], [R, S] -> [R, d]."""
    return events.sum(1) / filled.sum(1, keepdim=True).clamp_min(1)
