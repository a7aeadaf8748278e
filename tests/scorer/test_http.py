"""The HTTP front: a real server in a process of its own, hostile requests from its own schema."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from hisac_rec.scorer import Scorer
from hisac_rec.scorer.http import Limits, make_app


class Server:
    """``hisac-rec serve`` as a person starts it."""

    def __init__(self, served: Any, store: Path, *options: str) -> None:
        served.store(store).close()
        words = [sys.executable, "-m", "hisac_rec", "serve", str(served.root / "model")]
        words += ["--store", str(store), "--port", "0", *options]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving on http://([\d.]+):(\d+)", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise AssertionError("".join(self.lines))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def send(self, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
        """(status, JSON or text) of a request."""
        data = raw if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.host}:{self.port}{path}",
            data=data,
            headers={"content-type": "application/json"} if data is not None else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text, kind = answer.status, answer.read(), answer.headers["content-type"]
        except urllib.error.HTTPError as error:
            status, text, kind = error.code, error.read(), error.headers["content-type"]
        return status, json.loads(text) if "json" in kind else text.decode()

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(served: Any, store: Path, *options: str) -> Iterator[Server]:
    server = Server(served, store, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--max-candidates", "500", "--max-body-mb", "0.1")
    with running(served, tmp_path_factory.mktemp("http") / "store", *options) as one:
        yield one


def test_scores_come_best_first(served: Any, server: Server) -> None:
    for user, at, items, expected in served.last_requests(5):
        status, found = server.send("/score", {"user": user, "items": items, "time": at})
        assert status == 200
        scores = {one["item"]: one["score"] for one in found["scores"]}
        wanted = dict(zip(items, expected.tolist(), strict=True))
        assert scores.keys() == wanted.keys()
        assert scores == pytest.approx(wanted, abs=1e-6)
        values = [one["score"] for one in found["scores"]]
        assert values == sorted(values, reverse=True)
        _, top = server.send("/score", {"user": user, "items": items, "time": at, "top": 2})
        assert top["scores"] == found["scores"][:2]


def test_events_change_the_next_scores(served: Any, server: Server) -> None:
    user, at, items, _ = served.last_requests(7)[-1]
    ask = {"user": user, "items": items, "time": at + 1000}
    before = server.send("/score", ask)
    events = [{"item": items[0], "time": at + step} for step in range(5)]
    assert server.send(f"/users/{user}/events", {"events": events}) == (200, {"added": 5})
    assert server.send("/score", ask) != before


def test_health_and_metrics(served: Any, server: Server) -> None:
    status, health = server.send("/health")
    assert (status, health["status"]) == (200, "ok")
    assert 0.4 < health["metrics"]["auc"] < 1
    user, at, items, _ = served.last_requests(1)[0]

    def count(name: str) -> float:
        text = server.send("/metrics")[1]
        found = re.search(rf"^{re.escape(name)} ([\d.e+]+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    answered = 'hisac_requests_total{path="/score",status="200"}'
    before = count("hisac_candidates_total"), count(answered)
    server.send("/score", {"user": user, "items": items, "time": at})
    server.send(f"/users/{user}/nowhere")
    after = count("hisac_candidates_total"), count(answered)
    assert after == (before[0] + len(items), before[1] + 1)
    assert count('hisac_requests_total{path="other",status="404"}') >= 1


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"{", 400, "JSON decode error"),
        (b"[" * 50_000, 400, "."),
        (b'{"user": "1"}', 422, "items: Field required"),
        (b'{"user": "1", "items": []}', 422, "items: List should have at least 1 item"),
        (b'{"user": 1, "items": ["1"]}', 422, "user: Input should be a valid string"),
        (b'{"user": "1", "items": ["1"], "no": 1}', 422, "no: Extra inputs are not permitted"),
        (b'{"user": "1", "items": ["1"], "time": 1e300}', 422, "time: "),
        (b'{"user": "1", "items": ["1"], "time": 99999999999999999999999}', 422, "time: "),
        (b'{"user": "\\ud800", "items": ["1"]}', 422, "user: "),
        (
            b'{"user": "' + b"u" * 600 + b'", "items": ["1"]}',
            422,
            "user: String should have at most",
        ),
        (
            json.dumps({"user": "1", "items": ["1"] * 501}).encode(),
            422,
            "501 candidates, 500 may be",
        ),
        (b" " * 200_000, 413, "a body may have 100,000 bytes at most"),
        (b"\xff\xfe", 400, "."),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    server: Server, raw: bytes, status: int, message: str
) -> None:
    found, answer = server.send("/score", raw=raw)
    assert found == status
    assert answer.keys() == {"error"}
    assert message in answer["error"] or message == "."
    assert "Traceback" not in answer["error"]
    assert server.send("/health")[0] == 200


def test_a_body_of_untold_length_is_cut_off(server: Server) -> None:
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        head = "POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
        for _ in range(30):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(4096)


def test_an_unknown_event_type_is_named(served: Any, server: Server) -> None:
    body = {"events": [{"item": "1", "time": 5, "type": "clik"}]}
    status, answer = server.send("/users/1/events", body)
    assert status == 422
    assert "event type 'clik': the data set has no such type" in answer["error"]


def test_more_than_may_wait_are_told_to_come_again(served: Any, tmp_path: Path) -> None:
    options = ("--threads", "1", "--queue", "2", "--max-candidates", "100000")
    user, at, items, _ = served.last_requests(1)[0]
    body = {"user": user, "items": (items * 3000)[:30_000], "time": at, "top": 1}
    with running(served, tmp_path / "store", *options) as server, ThreadPoolExecutor(12) as pool:
        found = Counter(
            status for status, _ in pool.map(lambda _: server.send("/score", body), range(24))
        )
        assert set(found) == {200, 503}
        status, _ = server.send("/score", {**body, "items": items})
        assert status == 200  # and afterwards all is well


def test_requests_under_way_are_answered_before_the_end(served: Any, tmp_path: Path) -> None:
    user, at, items, _ = served.last_requests(1)[0]
    body = {"user": user, "items": (items * 6000)[:60_000], "time": at, "top": 1}
    options = ("--threads", "1", "--max-candidates", "100000")
    with running(served, tmp_path / "store", *options) as server, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(server.send, "/score", body)
        while "hisac_requests_inside 1.0" not in server.send("/metrics")[1]:
            assert not under_way.done(), "over before it was seen: ask for more"
            time.sleep(0.005)
        server.end()
        assert under_way.result()[0] == 200
        with pytest.raises(OSError, match="refused"):
            server.send("/health")


def test_hostile_requests_from_its_own_document(served: Any, tmp_path: Path) -> None:
    scorer = Scorer.load(served.root / "model", served.store(tmp_path / "store"))
    app = make_app(scorer, Limits(body_bytes=100_000))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    answers = Counter[str]()

    for operation in schema.get_all_operations():

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def answered(case: Any) -> None:
            response = case.call()
            answers[f"{case.method} {case.path} {response.status_code}"] += 1
            assert response.status_code in (200, 400, 404, 405, 413, 422), response.content[:500]
            assert b"Traceback" not in response.content
            if response.status_code == 200 and case.path == "/score":
                scores = [one["score"] for one in response.json()["scores"]]
                assert np.isfinite(scores).all()

        answered()
    assert any("/score 200" in name for name in answers), answers
