"""A server under load, from another process: what it answers, and how its memory grows.

``hisac-rec serve`` is started as a person would; clients ask for random users and candidates and
send events, first as many as may wait (nothing may fail), then more than may (nothing but 200 and
503)::

    python -m benchmarks.load runs/hisac --minutes 10

Writes docs/results/serving/load.json, which the page docs/results/serving.md shows
(``python -m benchmarks.freshness --report-only``).
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.comparison import command
from hisac_rec.train.run import RunFolder, stack_versions

RECORD = Path("docs/results/serving/load.json")
THREADS, QUEUE = 1, 16
CANDIDATES = 200
SAMPLE_SECONDS = 10.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, default=Path("runs/load"))
    arguments = parser.parse_args()
    work = arguments.work
    if not (work / "model").is_dir():
        command("export", arguments.run, "--out", work / "model")
        command("compress", arguments.run, "--out", work / "cache")
        command("store", work / "cache", "--out", work / "store")
    data = RunFolder(arguments.run).data(None)
    users = [name for name in data.read_parquet("vocab/user.parquet")["value"].to_pylist() if name]
    items = data.items["raw_id"].to_pylist()[1:]
    process, port = _serve(work)
    try:
        server = psutil.Process(process.pid)
        steady = Load(port, users, items, clients=QUEUE)
        memory = steady.run(60 * arguments.minutes, server)
        crowd = Load(port, users, items, clients=4 * QUEUE)
        crowd.run(30.0, server)
    finally:
        process.terminate()
        process.wait(60)
    record = {
        "date": date.today().isoformat(),
        "versions": stack_versions(),
        "minutes": arguments.minutes,
        "threads": THREADS,
        "queue": QUEUE,
        "candidates": CANDIDATES,
        "steady": steady.found(),
        "crowd": crowd.found(),
        "memory_mib": memory,
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


def _serve(work: Path) -> tuple[subprocess.Popen[str], int]:
    words = [sys.executable, "-m", "hisac_rec", "serve", str(work / "model")]
    words += ["--store", str(work / "store"), "--port", "0"]
    words += ["--threads", str(THREADS), "--queue", str(QUEUE)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving on http://[\d.]+:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found[1])
    raise RuntimeError("the server did not start")


class Load:
    """Clients that ask as fast as they are answered.

    Args:
        port: of the server.
        users: raw ids.
        items: raw ids.
        clients: connections at a time.
    """

    def __init__(self, port: int, users: list[str], items: list[str], clients: int) -> None:
        self._port, self._users, self._items = port, users, items
        self._clients, self._stop = clients, threading.Event()
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []

    def run(self, seconds: float, server: psutil.Process) -> list[float]:
        """Load the server for so long; its resident MiB from time to time."""
        threads = [threading.Thread(target=self._client, args=(n,)) for n in range(self._clients)]
        for thread in threads:
            thread.start()
        memory, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(SAMPLE_SECONDS, left))
            memory.append(round(server.memory_info().rss / 2**20, 1))
        self._stop.set()
        for thread in threads:
            thread.join()
        return memory

    def found(self) -> dict[str, Any]:
        """What was answered."""
        p50, p99 = np.quantile(self.seconds, [0.5, 0.99])
        return {
            "clients": self._clients,
            "answers": dict(self.statuses),
            "p50_ms": round(1e3 * p50, 1),
            "p99_ms": round(1e3 * p99, 1),
        }

    def _client(self, number: int) -> None:
        generator = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.is_set():
            user = self._users[generator.integers(len(self._users))]
            chosen = generator.integers(len(self._items), size=CANDIDATES)
            names = [self._items[at] for at in chosen]
            path, body = "/score", {"user": user, "items": names, "top": 10}
            if generator.random() < 0.1:
                event = {"item": names[0], "time": int(time.time())}
                path, body = f"/users/{user}/events", {"events": [event]}
            begin = time.perf_counter()
            try:
                connection.request(
                    "POST", path, json.dumps(body), {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
                status = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(time.perf_counter() - begin)
            elif status == "503":
                time.sleep(0.05)


if __name__ == "__main__":
    main()
