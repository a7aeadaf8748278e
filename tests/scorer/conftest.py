"""A run that was exported and compressed, for all tests of scoring."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from training import one_process, predict_run, small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.scorer import LmdbStore
from hisac_rec.scorer.store import fill_store
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.serving.cache import Cache
from hisac_rec.serving.compress import compress_run
from hisac_rec.serving.export import export_run
from hisac_rec.train.run import RunFolder


class Served:
    """A run, what was exported of it, and what evaluation said."""

    def __init__(self, root: Path, data: PreparedData, *overrides: str) -> None:
        self.root, self.data = root, data
        train_run(small_config("train.epochs=2", *overrides), data, root / "run")
        self.evaluated = predict_run(root / "run", data)
        run = RunFolder(root / "run")
        with one_process() as ranks:
            export_run(run, data, root / "model", compiled=False)
            compress_run(run, data, ranks, root / "cache", at="last")
        users = data.read_parquet("vocab/user.parquet")["value"]
        self.users = users.to_numpy(zero_copy_only=False)
        self.names = data.items["raw_id"].to_numpy(zero_copy_only=False)

    def store(self, folder: Path) -> LmdbStore:
        """The compressed histories in a store of their own."""
        store = LmdbStore(folder)
        fill_store(store, Cache(self.root / "cache"))
        return store

    def last_requests(self, count: int) -> list[tuple[str, int, list[str], np.ndarray]]:
        """(user, time, items, scores) of the last request of some users."""
        found = []
        for user in np.unique(self.evaluated["user"])[:count]:
            own = self.evaluated["user"] == user
            last = self.evaluated["request"] == self.evaluated["request"][own].max()
            items = self.names[self.evaluated["item"][last]].tolist()
            time = int(self.evaluated["time"][last][0])
            found.append((self.users[user], time, items, self.evaluated["score"][last]))
        return found


OPEN = (
    'tables.vocabulary.item={kind="managed",rows=60,eviction_every=4}',
    'tables.vocabulary.user={kind="hashed",rows=100,hashes=2}',
    'tables.vocabulary.prefix2={kind="hashed",rows=12}',
)
"""Tables whose ids are not their rows."""


@pytest.fixture(scope="session")
def served_openly(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The same with open vocabularies; read only."""
    return Served(tmp_path_factory.mktemp("openly"), small_data, *OPEN)


DISLIKES = ("history.votes={view=-0.5,like=2}",)
"""Events of one type vote against their leaf."""


@pytest.fixture(scope="session")
def served_with_dislikes(
    small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    """The same of a model whose events can vote against leaves; read only."""
    return Served(tmp_path_factory.mktemp("dislikes"), small_data, *DISLIKES)


@pytest.fixture(scope="session")
def served_by_views(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The same with semantic IDs from co-consumption, in three views; read only."""
    root = tmp_path_factory.mktemp("views")
    shutil.copytree(small_data.root, root / "data")
    data = PreparedData(root / "data")
    keys = ("source=collaborative", "codes=[4, 6]", "dim=8", "collaborative.views=3")
    fit_semantic_ids(data, resolve_config(data, keys))
    return Served(root, data)


@pytest.fixture(scope="session")
def served(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Made once; read only."""
    return Served(tmp_path_factory.mktemp("served"), small_data)
