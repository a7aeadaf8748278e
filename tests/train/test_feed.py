"""Feeding batches: in step over ranks, scaled, and read ahead in a thread."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from builders import write_prepared

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputConfig, build_input_spec
from hisac_rec.data.items import load_items
from hisac_rec.data.loader import LoaderConfig, RequestBatches, make_loader
from hisac_rec.train.feed import Feeder, in_background


def test_one_rank(tmp_path: Path) -> None:
    data = write_prepared(tmp_path)
    spec = build_input_spec(InputConfig(candidate=["id"], history=["id"]), data.manifest, ())
    items = load_items(data, spec, None)
    batches = list(RequestBatches(data, "train", spec, items, LoaderConfig(max_candidates=20)))
    feeder = Feeder(batches, BatchAssembler(spec, items).empty, 1, None)
    fed = []
    for expected, batch in zip(batches, feeder, strict=True):
        assert float(batch.loss_scale) == pytest.approx(1 / expected.num_candidates)
        fed.append(batch)
    for expected in batches:  # they finish in order
        done = feeder.finished()
        assert done.candidates == expected.num_candidates
        assert done.batch.request_rows.equal(expected.request_rows)
    assert next(feeder, None) is None  # and it stays ended


def test_background_keeps_the_order() -> None:
    assert list(in_background(range(100), ahead=2)) == list(range(100))
    assert list(in_background([])) == []


def test_background_reads_ahead_but_not_further() -> None:
    taken = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    iterator = in_background(source(), ahead=3)
    assert next(iterator) == 0
    time.sleep(0.3)
    assert 3 <= len(taken) <= 6  # one out, three waiting, one in the hand
    iterator.close()  # type: ignore[attr-defined]


def test_an_exception_reaches_the_consumer_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("damaged")

    iterator = in_background(source())
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(KeyError, match="damaged"):
        next(iterator)
    assert not loader_threads()


def test_leaving_early_stops_the_thread() -> None:
    iterator = in_background(iter(int, 1), ahead=1)  # endless zeros
    next(iterator)
    assert len(loader_threads()) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert not loader_threads()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


class CollectsOften(RequestBatches):
    """Turns the garbage collector on in the worker that reads it."""

    def __init__(self, batches: RequestBatches) -> None:
        vars(self).update(vars(batches))

    def __iter__(self) -> Iterator[RequestBatch]:
        gc.enable()
        yield from super().__iter__()


def test_workers_do_not_destroy_what_they_inherit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process group in a forked worker's garbage: its end would wait for threads left behind."""
    data = write_prepared(tmp_path)
    spec = build_input_spec(InputConfig(candidate=["id"], history=["id"]), data.manifest, ())
    items = load_items(data, spec, None)
    batches = RequestBatches(data, "train", spec, items, LoaderConfig(max_candidates=20))
    expected = len(list(batches))
    often = gc.get_threshold()
    gc.disable()
    try:
        store = dist.HashStore()
        ring: list[object] = [dist.ProcessGroupGloo(store, 0, 1, timedelta(minutes=1))]
        ring.append(ring)
        monkeypatch.setattr(gc, "collect", lambda: 0)  # it became garbage just before the fork
        del ring
        gc.set_threshold(1)
        found = sum(1 for _ in make_loader(CollectsOften(batches), workers=2))
        assert found == expected
    finally:
        gc.set_threshold(*often)
        gc.enable()
