"""The ranker: sharded lookups, then everything dense in one module.

``forward`` touches nothing but attributes of the batch before the sharded modules, so
``TrainPipelineSparseDist`` can start the lookups of the next batch during this one.

Legend: R requests, T events, N candidates, B bags, F feature vectors, d width.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputSpec, Side
from hisac_rec.methods.base import Candidates, History, HistoryMethod, request_of_rows
from hisac_rec.methods.recent import newest_events
from hisac_rec.ranker.arches import DenseArch, InteractionArch, OverArch
from hisac_rec.ranker.config import RankerConfig
from hisac_rec.ranker.sparse import EventEncoder, LookedUp
from hisac_rec.train.config import TrainConfig

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
        vectors = 1 + len(self.user_lookups) + len(self.candidate_lookups)
        vectors += int(self.uses_history) * method.interests + int(self.recent > 0)
        self.interaction = InteractionArch(vectors, dim, config.include_vectors)
        self.over = OverArch(self.interaction.out_dim, config.over_layers, config.dropout)

    def compile_arches(self) -> None:
        """Compile in place what has one shape for all methods; names of parameters stay.

        The number of candidates is left open, so that a batch of another size compiles nothing.
        """
        self.interaction.compile(dynamic=True)
        self.over.compile(dynamic=True)

    def forward(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        bags: dict[str, Tensor],
        vectors: dict[str, JaggedTensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """[N] logits, and the method's [N] auxiliary logits where it trains with some.

        Args:
            batch: the batch without its ids.
            rows: looked-up rows per key.
            bags: [B, d] sums per table that is read by bags.
            vectors: frozen semantic vectors per side, or None.
        """
        count = batch.num_candidates
        request = request_of_rows(batch.candidate_offsets, count)
        found = LookedUp(batch, rows, bags)
        lengths = batch.memory.get(LENGTH, batch.history_offsets.diff())
        context = self.dense(torch.log1p(lengths.float()).unsqueeze(1))
        per_request = [context]
        per_request += map(found.of, self.user_lookups)
        auxiliary: Tensor | None = None
        per_candidate = list(map(found.of, self.candidate_lookups))
        if self.uses_history:
            history = self._history(batch, found, vectors)
            if self.recent:
                per_request.append(_mean(*newest_events(history, self.recent)))
            candidates = Candidates(
                offsets=batch.candidate_offsets,
                values=self._as_events(per_candidate, context),
                codes=batch.candidate_codes,
                placed=batch.candidate_placed,
                features=batch.candidate_features,
                vectors=self._of_side(vectors, "candidate"),
                request=request,
            )
            memory = self._compress(history, batch)
            with record_function("history: read"):
                per_candidate += self.method.read(memory, candidates).unbind(1)
            if self.training and self.method.auxiliary_weight:
                auxiliary = self.method.auxiliary(memory, candidates).float()
        with record_function("interaction and over arch"):
            shared = torch.stack(per_request, dim=1)[request]
            features = torch.cat([shared, torch.stack(per_candidate, dim=1)], dim=1)
            logits: Tensor = self.over(self.interaction(features))
        return logits.float(), auxiliary

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
            vectors=None if semantic is None else semantic.index_select(0, batch.history_rows),
            age=batch.history_age,
        )

    def _as_events(self, per_candidate: list[Tensor], like: Tensor) -> Tensor:
        """[N, d]: what candidates look up in the tables that events read, summed."""
        shared = [per_candidate[number] for number in self.as_event]
        nothing = like.new_zeros((len(per_candidate[0]) if per_candidate else 0, like.shape[1]))
        return reduce(torch.add, shared) if shared else nothing

    def _of_side(self, vectors: dict[str, JaggedTensor] | None, side: Side) -> Tensor | None:
        # A sharded collection gives a lazy result, which can be asked for a key alone.
        if vectors is None or side not in self.vector_sides:
            return None
        # Frozen: the table stays bit-identical because no gradient ever reaches it.
        return vectors[f"{side}.vector"].values().detach()


class Ranker(nn.Module):
    """Lookups plus :class:`DenseRanker` plus the loss.

    Args:
        tables: the trained tables that are read row by row, or None.
        bags: the trained tables that are read by bags, or None.
        vectors: the frozen collection, or None.
        dense: everything after the lookups.
        config: ``[train]`` of the model file: precision, accumulation.
    """

    def __init__(
        self,
        tables: EmbeddingCollection | None,
        bags: EmbeddingBagCollection | None,
        vectors: EmbeddingCollection | None,
        dense: DenseRanker,
        config: TrainConfig,
    ) -> None:
        super().__init__()
        if tables is not None:
            self.tables = tables
        self.has_tables = tables is not None
        if bags is not None:
            self.bags = bags
        self.has_bags = bags is not None
        if vectors is not None:
            self.vectors = vectors
        self.has_vectors = vectors is not None
        self.head = Head(dense, config)

    def trained_collections(self) -> list[EmbeddingCollection | EmbeddingBagCollection]:
        """The collections whose rows are trained."""
        found: list[EmbeddingCollection | EmbeddingBagCollection] = []
        if self.has_tables:
            found.append(self.tables)
        if self.has_bags:
            found.append(self.bags)
        return found

    def forward(self, batch: RequestBatch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(loss [], (loss [], logits [N])): what to differentiate, and what to look at.

        The loss is the sum over candidates times ``loss_scale``; the first one has the
        method's auxiliary loss added and is this batch's share of the accumulated gradient,
        the second has and is not.
        """
        rows = self.tables(batch.features) if self.has_tables else {}
        bags = self.bags(batch.bags) if self.has_bags else None
        vectors = self.vectors(batch.semantics) if self.has_vectors else None
        return self.head(batch, rows, bags, vectors)


class Head(nn.Module):
    """The dense part and the loss: one leaf for the pipeline's tracer.

    Set ``holds`` and it gives what a cache is to hold of the histories instead of logits.
    """

    def __init__(self, dense: DenseRanker, config: TrainConfig) -> None:
        super().__init__()
        self.dense = dense
        self.holds = False
        self.bf16 = config.precision == "bf16"
        self.accumulate = config.accumulate

    def forward(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        bags: KeyedTensor | None,
        vectors: dict[str, JaggedTensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Any]]:
        summed = {} if bags is None else bags.to_dict()
        device = batch.labels.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            if self.holds:
                return batch.loss_scale, (
                    batch.loss_scale,
                    self.dense.hold(batch, rows, summed, vectors),
                )
            logits, auxiliary = self.dense(batch, rows, summed, vectors)
        loss = _cross_entropy(logits, batch)
        trained = loss
        if auxiliary is not None:
            trained = loss + self.dense.method.auxiliary_weight * _cross_entropy(auxiliary, batch)
        if not (batch.num_candidates and batch.num_events):
            trained = trained + self._touch_all(rows, summed)
        return trained / self.accumulate, (loss.detach(), logits.detach())

    def _touch_all(self, rows: dict[str, JaggedTensor], bags: dict[str, Tensor]) -> Tensor:
        """Zero, with a gradient (of zero) to every parameter and looked-up row.

        Other ranks wait for this rank's part of every gradient. A rank out of data whose
        history method skips its weights on an empty batch would otherwise hang them all.
        """
        touched: list[Tensor] = [p for p in self.parameters() if p.requires_grad]
        touched += [rows[lookup].values() for lookup in self.dense.lookup_keys]
        touched += bags.values()
        return torch.stack([0.0 * tensor.sum().float() for tensor in touched]).sum()


def _cross_entropy(logits: Tensor, batch: RequestBatch) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
    return losses * batch.loss_scale


def _mean(events: Tensor, filled: Tensor) -> Tensor:
    """[R, S, d], [R, S] -> [R, d]."""
    return events.sum(1) / filled.sum(1, keepdim=True).clamp_min(1)
