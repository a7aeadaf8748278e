from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from hisac_rec.train.distributed import Ranks
from hisac_rec.train.heartbeat import Heartbeat, Heartbeats
from hisac_rec.train.watch import Watch

GLOO = (
    "[unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation to complete",
    "Application timeout caused pair closure",
    "[pair.cc:538] Connection closed by peer [10.99.0.2]:1234",
)
"""What gloo of torch 2.13 said where a cable was pulled, or a process killed."""


def beat_of(host: str, seconds_ago: float) -> Heartbeat:
    """A heartbeat of rank 1."""
    written = time.time() - seconds_ago
    return Heartbeat(
        **{"rank": 1, "host": host, "pid": 1, "state": "running", "step": 12, "epoch": 0},
        **{"doing": "compute", "since": written, "at": "", "beats": 50, "time": written},
        error="",
    )


def explained(root: Path, beat: Heartbeat, said: str) -> str:
    Heartbeats(root, 2).write(beat)
    watch = Watch(root, Ranks(0, 2, 1, torch.device("cpu")), timedelta(minutes=1))
    return str(watch.explain(RuntimeError(said)))


@pytest.mark.parametrize("said", GLOO)
def test_a_rank_of_another_host_that_is_alive_is_beyond_a_cut(tmp_path: Path, said: str) -> None:
    text = explained(tmp_path, beat_of("elsewhere", 2), said)
    assert "alive all the same, so the network to them is cut: host elsewhere (rank 1)" in text
    assert said in text


def test_a_rank_that_is_silent_is_not_said_to_be_alive(tmp_path: Path) -> None:
    text = explained(tmp_path, beat_of("elsewhere", 300), GLOO[0])
    assert "the connection to another rank broke" in text
    assert "alive" not in text


def test_an_error_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    assert explained(tmp_path, beat_of("elsewhere", 2), "index out of range") == "None"
