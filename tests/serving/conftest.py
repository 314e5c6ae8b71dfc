"""A tiny attached model behind the small server, without a socket."""

import threading
import time

import pytest
import torch
from served_tokenizer import NAME, make_byte_tokenizer

from elastic_attention import attach
from tiny_models import elastic_config, make_model


def make_handle():
    """A tiny Llama with untrained routers and a context of 1,024 tokens."""
    model = make_model(vocab_size=300, max_position_embeddings=1024)
    torch.manual_seed(1)
    return attach(model, elastic_config(model))


@pytest.fixture(scope="module")
def app_engine():
    """The engine of a server that takes three requests at a time."""
    pytest.importorskip("fastapi")
    from elastic_attention.serving.server.engine import AnswerEngine
    from elastic_attention.serving.server.limits import ServerLimits

    limits = ServerLimits(context=1024, max_new_tokens=64, max_body_bytes=20_000, max_requests=3)
    engine = AnswerEngine(make_handle(), make_byte_tokenizer(), limits)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(app_engine):
    """A client of the application."""
    from starlette.testclient import TestClient

    from elastic_attention.serving.server.app import build_app
    from elastic_attention.serving.server.metrics import ServerMetrics

    with TestClient(build_app(app_engine, name=NAME, metrics=ServerMetrics())) as made:
        yield made


@pytest.fixture(scope="module")
def server(app_engine):
    """The address of a running server, and its engine."""
    import uvicorn

    from elastic_attention.serving.server.app import build_app
    from elastic_attention.serving.server.connections import ImpatientProtocol
    from elastic_attention.serving.server.metrics import ServerMetrics

    app = build_app(app_engine, name=NAME, metrics=ServerMetrics())
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=ImpatientProtocol, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", app_engine
    running.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()
