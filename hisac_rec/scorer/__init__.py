"""Score users in a process of one's own: an exported model, a store of compressed histories.

Needs torch, numpy, pyarrow, pydantic and lmdb; nothing of the training stack is imported. Like
this::

    from hisac_rec.scorer import LmdbStore, Scorer

    scorer = Scorer.load(Path("model"), LmdbStore(Path("store")))
    scores = scorer.score("user 7", ["item 1", "item 2"])
"""

from hisac_rec.scorer.scorer import Event, Scorer
from hisac_rec.scorer.state import UserState
from hisac_rec.scorer.store import LmdbStore, Store

__all__ = ["Event", "LmdbStore", "Scorer", "Store", "UserState"]
