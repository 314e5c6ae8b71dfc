"""Running the application until it is stopped."""

import signal
from collections.abc import Iterable
from typing import Any

from .app import build_app
from .engine import AnswerEngine
from .hosts import list_allowed_hosts
from .limits import ServerLimits
from .metrics import ServerMetrics

GRACE_SECONDS = 5


def run_server(
    handle: Any,
    tokenizer: Any,
    limits: ServerLimits,
    *,
    name: str,
    host: str,
    port: int,
    budget: float = 0.0,
    allowed_hosts: Iterable[str] = (),
) -> dict[str, float]:
    """Serve an attached model until SIGINT or SIGTERM; from the main thread, which keeps ignoring them afterwards.

    Args:
        name: of the model, as requests call it.
        allowed_hosts: see `list_allowed_hosts`.

    Returns:
        What was served: requests by how they ended, prompt_tokens, new_tokens.
    """
    import uvicorn

    from .connections import ImpatientProtocol

    # uvicorn raises the signal that stopped it once more, which would end the process before its record is written.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    metrics = ServerMetrics()
    engine = AnswerEngine(handle, tokenizer, limits)
    try:
        allowed = list_allowed_hosts(host, allowed_hosts)
        app = build_app(engine, name=name, metrics=metrics, budget=budget, allowed_hosts=allowed)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=ImpatientProtocol,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=4 * limits.max_requests + 16,
        )
        uvicorn.Server(config).run()
    finally:
        engine.close()
    return metrics.summarize()
