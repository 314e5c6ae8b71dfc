"""Running the application until it is stopped."""

from typing import Any

from .app import build_app
from .engine import AnswerEngine
from .limits import ServerLimits
from .metrics import ServerMetrics

GRACE_SECONDS = 5


def run_server(
    handle: Any, tokenizer: Any, limits: ServerLimits, *, name: str, host: str, port: int, budget: float = 0.0
) -> dict[str, float]:
    """Serve an attached model until SIGINT or SIGTERM.

    Args:
        name: of the model, as requests call it.

    Returns:
        What was served: requests by how they ended, prompt_tokens, new_tokens.
    """
    import uvicorn

    metrics = ServerMetrics()
    engine = AnswerEngine(handle, tokenizer, limits)
    try:
        app = build_app(engine, name=name, metrics=metrics, budget=budget)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=4 * limits.max_requests + 16,
        )
        uvicorn.Server(config).run()
    finally:
        engine.close()
    return metrics.summarize()
