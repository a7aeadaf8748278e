"""What is left to compute once a history is compressed, as one function of plain tensors.

This is what ``hisac-rec export`` hands over: one request, its agents and its candidates in, logits
out. No tables, no jagged tensors, nothing of the training stack.

Legend: K agents, J rejected leaves, N candidates, d width, D levels, F lookups of a side, S newest
events.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates
from hisac_rec.methods.parts.agents import AgentMemory
from hisac_rec.ranker.dense import DenseRanker


class CandidateSide(nn.Module):
    """Logits of the candidates of one request whose history is compressed; its arguments are
    those that :data:`hisac_rec.scorer.artefact.INPUTS` names, then, of a model whose events can
    vote against leaves, those of :data:`hisac_rec.scorer.artefact.REJECTED`.

    Args:
        dense: the trained dense part.

    Raises:
        UserError: the model reads something that is not kept in a cache.
    """

    def __init__(self, dense: DenseRanker) -> None:
        super().__init__()
        self.dense = dense
        method = dense.method
        if method.memory is None or not issubclass(method.memory, AgentMemory):
            raise UserError("the history method keeps no agents, so there is nothing to export")
        if dense.vector_sides:
            raise UserError(
                "the history method reads frozen semantic vectors one by one, which an exported "
                "model does not carry; export a model with history.semantics = 'codes' and "
                "history.candidate_semantics = 'codes'"
            )
        if getattr(method, "short", None) is not None:
            raise UserError(
                "history.newest > 0: the newest events are attended to one by one, which an "
                "exported model does not do; export a model with history.newest = 0"
            )
        self.keeps_path = "path" in getattr(method.memory, "__dataclass_fields__", {})

    def forward(
        self,
        vectors: Tensor,
        events: Tensor,
        path: Tensor,
        length: Tensor,
        users: Tensor,
        recent: Tensor,
        candidates: Tensor,
        codes: Tensor,
        placed: Tensor,
        against: Tensor | None = None,
        against_path: Tensor | None = None,
    ) -> Tensor:
        """[N] logits, [N, M] of M > 1 tasks.

        Args:
            vectors: [K, d] routed vectors of the agents; K >= 1.
            events: [K] votes; 0 marks an agent that is not there.
            path: [K] int64 leaf paths.
            length: [1] int64 events of the history.
            users: [F, d] of the user-side lookups.
            recent: [1, d] mean of the newest events.
            candidates: [F, N, d] of the candidate-side lookups.
            codes: [N, D] int64 semantic-ID codes.
            placed: [N] bool, whether the codes mean anything.
            against: [J] votes against the rejected leaves; J >= 1, 0 marks one that is not there.
            against_path: [J] int64 which leaves; -1 where there is none.
        """
        dense, count = self.dense, candidates.shape[1]
        held: dict[str, Any] = {
            "vectors": vectors.unsqueeze(0),
            "filled": (events > 0).unsqueeze(0),
            "events": events.unsqueeze(0),
        }
        if self.keeps_path:
            held["path"] = path.unsqueeze(0)
        if against is not None and against_path is not None:
            held |= {"against": against.unsqueeze(0), "against_path": against_path.unsqueeze(0)}
        memory_type = dense.method.memory
        assert memory_type is not None
        per_candidate = list(candidates.unbind(0))
        request = torch.zeros(count, dtype=torch.int64, device=codes.device)
        asking = Candidates(
            offsets=functional.pad(torch.ones_like(request).sum(0, keepdim=True), (1, 0)),
            values=dense.as_events(per_candidate, count),
            codes=codes,
            vectors=None,
            request=request,
            placed=placed,
        )
        return dense.score(
            length,
            [user.unsqueeze(0) for user in users.unbind(0)],
            recent if dense.recent else None,
            memory_type(**held),
            per_candidate,
            asking,
        )
