"""Time patches: a compressor that cuts a history, in order, into equal stretches.

Source: the "time patches + MHA" baseline of HiSAC (arXiv 2602.21009), which names the idea and
the budget alone. Left to us: patches have the same number of events, not the same duration.

Legend: R requests, T events, K agents, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hisac_rec.methods.base import History, request_of_rows
from hisac_rec.methods.parts.agents import AgentMemory
from hisac_rec.methods.parts.compressor import Compressor, mean_agents


class Method(Compressor):
    """min(agents, L) patches a request; agent = mean of a patch's event embeddings."""

    def compress(self, history: History) -> AgentMemory:
        """Patches, oldest first. O(T d + R K d)."""
        return mean_agents(
            history, patches(history.offsets, history.num_events, self.config.agents)
        )


def patches(offsets: Tensor, rows: int, count: int) -> Tensor:
    """[rows] int64 patch of each event: event i of L is in patch floor(i k / L), k = min(count, L).

    Patches of a request differ by one event at most. O(rows).
    """
    request = request_of_rows(offsets, rows)
    lengths = offsets.diff()[request]
    position = torch.arange(rows, device=offsets.device) - offsets[request]
    return position * lengths.clamp_max(count) // lengths
