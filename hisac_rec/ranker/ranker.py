"""The ranker: sharded lookups, then everything dense in one module.

``forward`` touches nothing but attributes of the batch before the sharded modules, so
``TrainPipelineSparseDist`` can start the lookups of the next batch during this one.

Legend: R requests, N candidates, K tasks.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.tasks import MAIN, Task
from hisac_rec.ranker.dense import DenseRanker
from hisac_rec.train.config import TrainConfig


class Ranker(nn.Module):
    """Lookups plus :class:`DenseRanker` plus the loss.

    Args:
        tables: the trained tables that are read row by row, or None.
        managed: those whose rows a managed collision module gives out, or None.
        bags: the trained tables that are read by bags, or None.
        vectors: the frozen collection, or None.
        dense: everything after the lookups.
        config: ``[train]`` of the model file: precision, accumulation.
        tasks: what is learned, the main task first.
    """

    def __init__(
        self,
        tables: EmbeddingCollection | None,
        managed: ManagedCollisionEmbeddingCollection | None,
        bags: EmbeddingBagCollection | None,
        vectors: EmbeddingCollection | None,
        dense: DenseRanker,
        config: TrainConfig,
        tasks: tuple[Task, ...] = (MAIN,),
    ) -> None:
        super().__init__()
        if tables is not None:
            self.tables = tables
        self.has_tables = tables is not None
        if managed is not None:
            self.managed = managed
        self.has_managed = managed is not None
        if bags is not None:
            self.bags = bags
        self.has_bags = bags is not None
        if vectors is not None:
            self.vectors = vectors
        self.has_vectors = vectors is not None
        self.head = Head(dense, config, tasks)

    def trained_collections(self) -> list[nn.Module]:
        """The collections whose rows are trained."""
        found: list[nn.Module] = []
        if self.has_tables:
            found.append(self.tables)
        if self.has_managed:
            found.append(self.managed)
        if self.has_bags:
            found.append(self.bags)
        return found

    def forward(self, batch: RequestBatch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(loss [], (loss [], logits [N])): what to differentiate, and what to look at.

        The loss is the sum over candidates times ``loss_scale``; the first one has the
        method's auxiliary loss added and is this batch's share of the accumulated gradient,
        the second has and is not. Of K > 1 tasks it is the weighted sum of theirs; what to look
        at is then [1 + K], the loss and each task's own sum over the candidates that it applies
        to, without weight and scale, beside logits [N, K].
        """
        rows = self.tables(batch.features) if self.has_tables else {}
        managed = self.managed(batch.features) if self.has_managed else None
        bags = self.bags(batch.bags) if self.has_bags else None
        vectors = self.vectors(batch.semantics) if self.has_vectors else None
        return self.head(batch, rows, bags, vectors, managed)


class Head(nn.Module):
    """The dense part and the loss: one leaf for the pipeline's tracer.

    Set ``holds`` and it gives what a cache is to hold of the histories instead of logits.
    """

    def __init__(
        self, dense: DenseRanker, config: TrainConfig, tasks: tuple[Task, ...] = (MAIN,)
    ) -> None:
        super().__init__()
        self.dense = dense
        self.tasks = tasks
        self.holds = False
        self.bf16 = config.precision == "bf16"
        self.accumulate = config.accumulate

    def forward(
        self,
        batch: RequestBatch,
        rows: dict[str, JaggedTensor],
        bags: KeyedTensor | None,
        vectors: dict[str, JaggedTensor] | None,
        managed: tuple[dict[str, JaggedTensor], None] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Any]]:
        if managed is not None:
            others = self.dense.managed_keys
            rows = {
                key: managed[0][key] if key in others else rows[key]
                for key in self.dense.lookup_keys
            }
        summed = {} if bags is None else bags.to_dict()
        device = batch.labels.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            if self.holds:
                return batch.loss_scale, (
                    batch.loss_scale,
                    self.dense.hold(batch, rows, summed, vectors),
                )
            logits, auxiliary = self.dense(batch, rows, summed, vectors)
        loss, seen = self._loss(logits, batch)
        trained = loss
        if auxiliary is not None:
            second = _cross_entropy(auxiliary, batch.labels, self.tasks[0]) * batch.loss_scale
            trained = loss + self.dense.method.auxiliary_weight * second
        if not (batch.num_candidates and batch.num_events):
            trained = trained + self._touch_all(rows, summed)
        return trained / self.accumulate, (seen.detach(), logits.detach())

    def _loss(self, logits: Tensor, batch: RequestBatch) -> tuple[Tensor, Tensor]:
        """What is to fall, and what is shown of it: see :meth:`Ranker.forward`."""
        main, *further = self.tasks
        if not further:
            loss = main.weight * _cross_entropy(logits, batch.labels, main) * batch.loss_scale
            return loss, loss
        labels = [batch.labels, *(batch.tasks[task.name] for task in further)]
        sums = [
            _cross_entropy(of, label, task)
            for of, label, task in zip(logits.unbind(1), labels, self.tasks, strict=True)
        ]
        weighted = [task.weight * one for task, one in zip(self.tasks, sums, strict=True)]
        loss = reduce(torch.add, weighted) * batch.loss_scale
        return loss, torch.stack([loss, *sums])

    def _touch_all(self, rows: dict[str, JaggedTensor], bags: dict[str, Tensor]) -> Tensor:
        """Zero, with a gradient (of zero) to every parameter and looked-up row.

        Other ranks wait for this rank's part of every gradient. A rank out of data whose
        history method skips its weights on an empty batch would otherwise hang them all.
        """
        touched: list[Tensor] = [p for p in self.parameters() if p.requires_grad]
        touched += [rows[lookup].values() for lookup in self.dense.lookup_keys]
        touched += bags.values()
        return torch.stack([0.0 * tensor.sum().float() for tensor in touched]).sum()


def _cross_entropy(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """[] summed over the candidates that the task applies to."""
    applies = None
    if task.masked:
        applies = (~labels.isnan()).float()
        labels = labels.nan_to_num(0.0)
    return functional.binary_cross_entropy_with_logits(
        logits, labels, weight=applies, reduction="sum"
    )
