"""An HTTP front for a scorer: JSON in, JSON out, bounded in everything a client can ask for.

Requests are scored by a fixed number of threads; a bounded number of others wait for one, and all
beyond that are told to come again (503). Errors are one sentence and never a trace.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import anyio
import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.scorer.scorer import Event, Scorer
from hisac_rec.scorer.store import LONGEST_KEY

T = TypeVar("T")
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)]
Time = Annotated[int, Field(ge=-(1 << 60), le=1 << 60)]
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Limits(Strict):
    """What one client may ask for, and how much is done at a time."""

    threads: int = Field(default=2, gt=0)
    """Requests scored at a time."""
    queue: int = Field(default=64, ge=0)
    """Requests that wait for a thread; more are refused with 503."""
    candidates: int = Field(default=10_000, gt=0)
    """Of one request."""
    events: int = Field(default=1_000, gt=0)
    """Of one update."""
    body_bytes: int = Field(default=4 << 20, gt=0)
    """Of one request; larger ones are refused with 413."""


class Body(BaseModel):
    """Unknown keys are errors; no type is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ScoreRequest(Body):
    """Who is to be shown what."""

    user: Name
    items: list[Name] = Field(min_length=1)
    time: Time | None = None
    """Of the request, in the data set's unit; absent: now."""
    top: int | None = Field(default=None, ge=1)
    """Only the best so many; absent: all."""


class ScoredItem(BaseModel):
    """A candidate with its probability."""

    item: str
    score: float
    tasks: dict[str, float] | None = None
    """Further task -> probability; absent where the model has one task."""


class ScoreResponse(BaseModel):
    """Candidates, the best first."""

    scores: list[ScoredItem]


class EventIn(Body):
    """Something the user did."""

    item: Name
    time: Time
    type: str = Field(default="", max_length=100)


class EventsRequest(Body):
    """New events of a user, in any order."""

    events: list[EventIn]


class EventsResponse(BaseModel):
    """What was added."""

    added: int


class Health(BaseModel):
    """What is served."""

    status: str
    model: str
    run: str
    metrics: dict[str, float]
    tasks: list[str]
    """The main one first; none where there is one without a name."""


class Problem(BaseModel):
    """What went wrong, in a sentence."""

    error: str


class BusyError(Exception):
    """The queue is full."""


class Turns:
    """Runs functions in a bounded number of threads; a bounded number of others waits.

    Args:
        limits: how many.
        waiting: shows how many wait or run.
    """

    def __init__(self, limits: Limits, waiting: Gauge) -> None:
        self._limits, self._waiting = limits, waiting
        self._limiter: anyio.CapacityLimiter | None = None
        self._inside = 0

    async def run(self, function: Callable[[], T]) -> T:
        """The result of ``function``.

        Raises:
            BusyError: as many as may wait do.
        """
        if self._inside >= self._limits.threads + self._limits.queue:
            raise BusyError
        if self._limiter is None:  # belongs to the event loop, which runs by now
            self._limiter = anyio.CapacityLimiter(self._limits.threads)
        self._inside += 1
        self._waiting.set(self._inside)
        try:
            return await anyio.to_thread.run_sync(function, limiter=self._limiter)
        finally:
            self._inside -= 1
            self._waiting.set(self._inside)


class BodyLimit:
    """Refuses bodies that are too large, also where their length is not told."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._most:
            await self._refuse(scope, receive, send)
            return
        read, refused = 0, False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                refused = True
                return {"type": "http.request", "body": b"", "more_body": False}
            return message

        async def instead(message: Message) -> None:
            if not refused:
                await send(message)

        await self._app(scope, counted, instead)
        if refused:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _problem(413, f"a body may have {self._most:,} bytes at most")
        response.headers["connection"] = "close"
        await response(scope, receive, send)


def make_app(scorer: Scorer, limits: Limits | None = None) -> FastAPI:
    """The application.

    Args:
        scorer: what it serves.
        limits: what clients may ask for.
    """
    limits = limits or Limits()
    registry = CollectorRegistry()
    requests = Counter("hisac_requests", "Answered.", ["path", "status"], registry=registry)
    seconds = Histogram(
        "hisac_request_seconds",
        "From reading to answer.",
        ["path"],
        registry=registry,
        buckets=BUCKETS,
    )
    candidates = Counter("hisac_candidates", "Scored.", registry=registry)
    waiting = Gauge("hisac_requests_inside", "Waiting or being scored.", registry=registry)
    turns = Turns(limits, waiting)
    manifest = scorer.artefact.manifest
    app = FastAPI(title=f"hisac_rec: {manifest.name}", docs_url=None, redoc_url=None)
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text}
        for status, text in (
            (400, "not JSON"),
            (413, "the body is too large"),
            (422, "not what the schema says"),
            (503, "busy: come again"),
        )
    }

    @app.middleware("http")
    async def measure(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")  # its template: names of users are no labels
        path = getattr(route, "path", "other")
        requests.labels(path, str(response.status_code)).inc()
        seconds.labels(path).observe(time.perf_counter() - started)
        return response

    @app.post("/score", responses=refusals, response_model_exclude_none=True)
    async def score(body: ScoreRequest) -> ScoreResponse:
        """Probabilities of candidates for a user, the best of the main task first."""
        if len(body.items) > limits.candidates:
            raise UserError(
                f"items: {len(body.items):,} candidates, {limits.candidates:,} may be asked for"
            )
        of_tasks = await turns.run(
            lambda: scorer.score_tasks(body.user, body.items, time=body.time)
        )
        candidates.inc(len(body.items))
        (_, found), *further = of_tasks.items()
        best = np.argsort(-found, kind="stable")[: body.top]
        return ScoreResponse(
            scores=[
                ScoredItem(
                    item=body.items[at],
                    score=float(found[at]),
                    tasks={task: float(of[at]) for task, of in further} or None,
                )
                for at in best
            ]
        )

    @app.post("/users/{user}/events", responses=refusals)
    async def events(user: Name, body: EventsRequest) -> EventsResponse:
        """Add what a user did; it counts in the next request."""
        if len(body.events) > limits.events:
            raise UserError(f"events: {len(body.events):,}, {limits.events:,} may be added at once")
        new = [Event(event.item, event.time, event.type) for event in body.events]
        await turns.run(lambda: scorer.update_history(user, new))
        return EventsResponse(added=len(new))

    @app.get("/health")
    async def health() -> Health:
        """Up, and serving what."""
        return Health(
            status="ok",
            model=manifest.name,
            run=manifest.run,
            metrics=manifest.metrics,
            tasks=manifest.tasks,
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and times in Prometheus' text form."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(BusyError)
    async def busy(_request: Request, _error: BusyError) -> JSONResponse:
        response = _problem(503, "as many requests wait as may; come again")
        response.headers["retry-after"] = "1"
        return response

    @app.exception_handler(UserError)
    async def wrong(_request: Request, error: UserError) -> JSONResponse:
        return _problem(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not sent back: it may be large, and not even text.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        broken = first["type"].startswith("json")
        return _problem(400 if broken else 422, f"{where or 'body'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return _problem(500, "an error that the server's log describes")

    app.add_middleware(BodyLimit, most=limits.body_bytes)
    return app


def _problem(status: int, text: str) -> JSONResponse:
    # Part of what a client sent may be quoted, and that need not be text.
    safe = text.encode("utf-8", "replace").decode()
    return JSONResponse({"error": safe}, status_code=status)
