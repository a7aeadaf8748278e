"""Progress on a terminal, without one, and on other ranks."""

from __future__ import annotations

import io
import logging
import pty
import subprocess
import sys
import time
from os import close, read

import pytest
import torch.distributed as dist
from torch.distributed import HashStore

from hisac_rec import progress as module
from hisac_rec.progress import is_rank_zero, progress


def test_without_a_terminal_lines_come_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    with progress("prepare users", total=4000, unit="users") as advance:
        for _ in range(100):
            advance(10)
        time.sleep(0.06)
        advance(1000, note="2 GiB")
    assert "prepare users: 2,000 of 4,000 users" in caplog.text
    assert "(2 GiB)" in caplog.text
    assert len(caplog.records) < 10


def test_short_work_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    with progress("short", total=1) as advance:
        advance()
    assert not caplog.records


def test_an_error_inside_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), progress("work"):
        _ = 1 / 0


def test_only_rank_zero_talks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 of a group of 2; the fake backend starts a group without its other members."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        assert not is_rank_zero()
        with progress("work", total=2) as advance:
            advance(1, note="half")
        assert not caplog.records
    finally:
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert is_rank_zero()
    finally:
        dist.destroy_process_group()


def test_a_terminal_gets_a_bar() -> None:
    code = (
        "import time\n"
        "from hisac_rec.progress import progress\n"
        "with progress('fit codes', total=3) as advance:\n"
        "    for _ in range(3): advance(); time.sleep(0.15)\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", code], stderr=theirs)
    close(theirs)
    shown = b""
    try:
        while chunk := read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    close(ours)
    assert child.wait() == 0
    assert b"fit codes" in shown
    assert b"3/3" in shown
