"""The ranker: sharded lookups, then everything dense in one module.

``forward`` touches nothing but attributes of the batch before the sharded modules, so
``TrainPipelineSparseDist`` can start the lookups of the next batch during this one.

Legend: R requests, T events, N candidates, F feature vectors, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputSpec, Side
from hisac_rec.methods.base import Candidates, History, HistoryMethod, request_of_rows
from hisac_rec.methods.recent import newest_events
from hisac_rec.ranker.arches import DenseArch, InteractionArch, OverArch
from hisac_rec.ranker.config import RankerConfig
from hisac_rec.ranker.sparse import EventEncoder, pooled_rows

CONTEXT_FEATURES = 1
"""log(1 + history length)."""


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
        self.lookup_keys = tuple(lookup.key for lookup in spec.lookups)
        self.uses_history = method.uses_history
        self.recent = config.recent if method.uses_history else 0
        history = spec.of_side("history")
        if self.uses_history:
            self.events = EventEncoder(history, dim, spec.event_types, config.age_buckets)
        # A candidate is embedded as an event without type and age, from the same tables.
        columns = {lookup.column for lookup in history}
        shared = tuple(lk for lk in self.candidate_lookups if lk.column in columns)
        self.candidates = EventEncoder(shared, dim, 0, 0)
        self.dense = DenseArch(CONTEXT_FEATURES, config.dense_layers, dim)
        vectors = 1 + len(self.user_lookups) + len(self.candidate_lookups)
        vectors += int(self.uses_history) * method.interests + int(self.recent > 0)
        self.interaction = InteractionArch(vectors, dim, config.include_vectors)
        self.over = OverArch(self.interaction.out_dim, config.over_layers, config.dropout)

    def forward(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        vectors: dict[str, JaggedTensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """[N] logits, and the method's [N] auxiliary logits where it trains with some.

        Args:
            batch: the batch without its ids.
            rows: looked-up rows per key.
            vectors: frozen semantic vectors per side, or None.
        """
        count = batch.candidate_items.shape[0]
        request = request_of_rows(batch.candidate_offsets, count)
        lengths = batch.history_offsets.diff()
        context = self.dense(torch.log1p(lengths.float()).unsqueeze(1))
        per_request = [context]
        per_request += [pooled_rows(rows, {}, lk, len(lengths)) for lk in self.user_lookups]
        auxiliary: Tensor | None = None
        per_candidate = [
            pooled_rows(rows, batch.owners, lk, count) for lk in self.candidate_lookups
        ]
        if self.uses_history:
            history = self._history(batch, rows, vectors)
            if self.recent:
                per_request.append(_mean(*newest_events(history, self.recent)))
            candidates = Candidates(
                offsets=batch.candidate_offsets,
                values=self.candidates(
                    rows, batch.owners, batch.candidate_items, batch.candidate_items.float()
                ).each(),
                codes=batch.candidate_codes,
                placed=batch.candidate_placed,
                features=batch.candidate_features,
                vectors=self._of_side(vectors, "candidate"),
                request=request,
            )
            with record_function("history: compress"):
                memory = self.method.compress(history)
            with record_function("history: read"):
                per_candidate += self.method.read(memory, candidates).unbind(1)
            if self.training and self.method.auxiliary_weight:
                auxiliary = self.method.auxiliary(memory, candidates).float()
        with record_function("interaction and over arch"):
            shared = torch.stack(per_request, dim=1)[request]
            features = torch.cat([shared, torch.stack(per_candidate, dim=1)], dim=1)
            logits: Tensor = self.over(self.interaction(features))
        return logits.float(), auxiliary

    def _history(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        vectors: dict[str, JaggedTensor] | None,
    ) -> History:
        semantic = self._of_side(vectors, "history")  # of the distinct items
        return History(
            offsets=batch.history_offsets,
            events=self.events(
                rows,
                batch.owners,
                batch.history_type,
                batch.history_age,
                (batch.history_items, batch.history_rows),
            ),
            codes=batch.history_codes,
            features=batch.history_features,
            vectors=None if semantic is None else semantic.index_select(0, batch.history_rows),
            age=batch.history_age,
        )

    def _of_side(self, vectors: dict[str, JaggedTensor] | None, side: Side) -> Tensor | None:
        # A sharded collection gives a lazy result, which can be asked for a key alone.
        if vectors is None or side not in self.vector_sides:
            return None
        # Frozen: the table stays bit-identical because no gradient ever reaches it.
        return vectors[f"{side}.vector"].values().detach()


class Ranker(nn.Module):
    """Lookups plus :class:`DenseRanker` plus the loss.

    Args:
        tables: the trained collection.
        vectors: the frozen collection, or None.
        dense: everything after the lookups.
        precision: "fp32" or "bf16" autocast of the dense part.
    """

    def __init__(
        self,
        tables: EmbeddingCollection,
        vectors: EmbeddingCollection | None,
        dense: DenseRanker,
        precision: str,
    ) -> None:
        super().__init__()
        self.tables = tables
        if vectors is not None:
            self.vectors = vectors
        self.has_vectors = vectors is not None
        self.head = _Head(dense, precision)

    def forward(self, batch: RequestBatch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(loss [], (loss [], logits [N])): what to differentiate, and what to look at.

        The loss is the sum over candidates times ``loss_scale``; the first one has the
        method's auxiliary loss added, the second has not.
        """
        rows = self.tables(batch.features)
        vectors = self.vectors(batch.semantics) if self.has_vectors else None
        return self.head(batch, rows, vectors)


class _Head(nn.Module):
    """The dense part and the loss: one leaf for the pipeline's tracer."""

    def __init__(self, dense: DenseRanker, precision: str) -> None:
        super().__init__()
        self.dense = dense
        self.bf16 = precision == "bf16"

    def forward(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        vectors: dict[str, JaggedTensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        device = batch.labels.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            logits, auxiliary = self.dense(batch, rows, vectors)
        loss = _cross_entropy(logits, batch)
        trained = loss
        if auxiliary is not None:
            trained = loss + self.dense.method.auxiliary_weight * _cross_entropy(auxiliary, batch)
        if not (batch.num_candidates and batch.num_events):
            trained = trained + self._touch_all(rows)
        return trained, (loss.detach(), logits.detach())

    def _touch_all(self, rows: dict[str, JaggedTensor]) -> Tensor:
        """Zero, with a gradient (of zero) to every parameter and looked-up row.

        Other ranks wait for this rank's part of every gradient. A rank out of data whose
        history method skips its weights on an empty batch would otherwise hang them all.
        """
        touched = [parameter for parameter in self.parameters() if parameter.requires_grad]
        touched += [rows[lookup].values() for lookup in self.dense.lookup_keys]
        return torch.stack([0.0 * tensor.sum().float() for tensor in touched]).sum()


def _cross_entropy(logits: Tensor, batch: RequestBatch) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
    return losses * batch.loss_scale


def _mean(events: Tensor, filled: Tensor) -> Tensor:
    """[R, S, d], [R, S] -> [R, d]."""
    return events.sum(1) / filled.sum(1, keepdim=True).clamp_min(1)
