"""Requests that read a cache instead of their histories, as batches of the same kind.

Of a history the newest events stay (the ranker's short sequence), at the request's own moment;
all that is older comes from the cache, however old that is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from hisac_rec.checkpoints.saving import first_difference
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.units import RequestTable
from hisac_rec.errors import UserError
from hisac_rec.methods.base import find_method
from hisac_rec.ranker.dense import LENGTH
from hisac_rec.serving.cache import Cache
from hisac_rec.serving.compress import describe
from hisac_rec.serving.moments import newest_only
from hisac_rec.train.job import Job


@dataclass
class Cached:
    """Gives batches of a job their memory; a pair of hooks for the loader.

    Args:
        cache: of the job's checkpoint.
        job: model and data.
        missing: requests so far of users that the cache does not know: they score as if
            nothing older than the newest events were known of them.
    """

    cache: Cache
    job: Job
    missing: int = field(default=0, init=False)

    def view(self, table: RequestTable) -> RequestTable:
        """The requests with the newest events that are read one by one alone."""
        method = find_method(self.job.config.method)
        newest = method.newest(self.job.config.method_config())
        return newest_only(table, max(self.job.config.ranker.recent, newest))

    def remember(self, batch: RequestBatch) -> RequestBatch:
        """The batch with what the cache holds of its users."""
        user, time, number, seen = batch.request_rows.numpy().T
        rows = self.cache.rows(user, time, number)
        self.missing += int((rows < 0).sum())
        most = self.job.spec.max_history
        length = seen if most is None else np.minimum(seen, most)
        memory = self.cache.memory(rows) | {LENGTH: torch.from_numpy(length.copy())}
        return replace(batch, memory=memory)


def require_same(cache: Cache, job: Job, checkpoint: Path) -> None:
    """Check that a cache is of this checkpoint and data, whatever its moments and precision.

    Raises:
        UserError: it is of another one; names what differs.
    """
    found = cache.manifest
    wanted = describe(job, checkpoint, at=found.at, age=found.age, precision=found.precision)
    changed = first_difference(found.model_dump(), wanted.model_dump())
    if changed:
        raise UserError(
            f"{cache.root}: a cache of another checkpoint or other data: {changed} here; make one "
            "of this run with 'hisac-rec compress'"
        )
