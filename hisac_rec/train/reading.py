"""How far an epoch has been read, so that it can be read on by any number of ranks.

Which request a rank gets depends on how many ranks and loader workers there are. What has been
trained on does not: it is written into the checkpoint as intervals of request numbers. Resumed as
it was, a run skips the batches it has had; dealt out among others, the rest of the epoch is what
no rank has had. Either way each request is trained on once an epoch.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch.distributed as dist

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.consumed import Consumed

FILE = "reading.npz"


class Reading:
    """What of the current epoch has been trained on.

    Args:
        before: by whoever read the epoch before it was dealt out as it is now.
    """

    def __init__(self, before: Consumed | None = None) -> None:
        self.before = Consumed() if before is None else before
        self._since = Consumed()  # by this rank

    def note(self, batch: RequestBatch) -> None:
        """A step on ``batch`` is done. O(R)."""
        if batch.num_candidates:  # a rank that has run out works on a request that is none
            self._since.add(batch.request_rows[:, 2].numpy())

    def content(self) -> bytes:
        """``reading.npz``: what all ranks have read. Called on every rank."""
        every: list[Consumed | None] = [None] * dist.get_world_size()
        dist.all_gather_object(every, self._since)
        since = Consumed().union(one for one in every if one is not None)
        file = io.BytesIO()
        # Differences are small and much alike: they compress to a byte or two.
        np.savez_compressed(
            file,
            before=np.diff(self.before.intervals.ravel(), prepend=0),
            since=np.diff(since.intervals.ravel(), prepend=0),
        )
        return file.getvalue()

    @classmethod
    def load(cls, folder: Path, *, dealt_anew: bool) -> Reading:
        """Of a checkpoint.

        Args:
            folder: the checkpoint; one of before this file existed has read nothing.
            dealt_anew: what was read since counts as read before.
        """
        if not (folder / FILE).is_file():
            return cls()
        with np.load(io.BytesIO((folder / FILE).read_bytes())) as stored:
            before, since = (
                Consumed(np.cumsum(stored[name]).reshape(-1, 2)) for name in ("before", "since")
            )
        if dealt_anew:
            return cls(before.union([since]))
        found = cls(before)
        found._since = since if dist.get_rank() == 0 else Consumed()
        return found
