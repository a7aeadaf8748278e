"""``hisac-rec serve``: an exported model over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def run(
    model: Annotated[Path, typer.Argument(help="Of 'hisac-rec export'.")],
    store: Annotated[Path, typer.Option(help="Of 'hisac-rec store'.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Requests scored at a time; else one a core.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get 503.")] = 64,
    max_candidates: Annotated[int, typer.Option(min=1, help="Of one request.")] = 10_000,
    max_events: Annotated[int, typer.Option(min=1, help="Of one update.")] = 1_000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Of one request, in MB.")] = 4.0,
    verify: Annotated[bool, typer.Option(help="Compare all checksums before serving.")] = True,
) -> None:
    """Score over HTTP: POST /score, POST /users/USER/events, GET /health, GET /metrics.

    SIGTERM or Ctrl-C: requests under way are answered, then the server ends.

    **Example**

        hisac-rec serve model --store store

        curl localhost:8000/score --json '{"user": "17", "items": ["1193", "661"], "top": 1}'
    """
    import os

    import torch
    import uvicorn

    from hisac_rec.errors import UserError
    from hisac_rec.scorer import LmdbStore, Scorer
    from hisac_rec.scorer.http import Limits, make_app

    torch.set_num_threads(1)  # threads are for requests
    limits = Limits(
        threads=threads or os.cpu_count() or 1,
        queue=queue,
        candidates=max_candidates,
        events=max_events,
        body_bytes=int(max_body_mb * 1e6),
    )
    scorer = Scorer.load(model, LmdbStore(store), verify=verify)
    config = uvicorn.Config(
        make_app(scorer, limits),
        host=host,
        port=port,
        log_level="warning",
        timeout_keep_alive=10,
        timeout_graceful_shutdown=30,
        h11_max_incomplete_event_size=64 << 10,
        backlog=2048,
    )
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise UserError(f"--host {host} --port {port}: cannot listen there (in use?)") from None
    listening.listen(config.backlog)  # who comes before the loop runs waits for it
    log.info("serving on http://%s:%d", *listening.getsockname()[:2])
    uvicorn.Server(config).run(sockets=[listening])
