"""The small server on a socket: many clients at once, clients that leave, and the limit on both."""

import asyncio
import gc
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import weakref

import pytest
from served_tokenizer import NAME

PROMPT = "The boat is red and the sail is white. " * 20


def post(address, timeout=60, **changes):
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 4, "temperature": 0} | changes
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=timeout)


def wait_until_idle(engine):
    stop = time.monotonic() + 20
    while engine.num_active:
        assert time.monotonic() < stop, "an abandoned request goes on"
        time.sleep(0.01)


def test_clients_at_once_get_the_answers_of_clients_alone(server):
    address, engine = server
    bodies = [
        {"vllm_xargs": {"elastic_routes": routes}, "prompt": PROMPT[n:]}
        for n, routes in enumerate(("auto", "sparse", "off"))
    ]
    alone = [json.load(post(address, **body))["choices"] for body in bodies]
    together = [None] * len(bodies)

    def call(i):
        together[i] = json.load(post(address, **bodies[i]))["choices"]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_client_that_leaves_mid_stream_stops_its_answer(server):
    address, engine = server
    for _ in range(3):
        response = post(address, stream=True, max_tokens=64)
        assert response.readline().startswith(b"data: ")
        response.close()
    wait_until_idle(engine)
    assert len(json.load(post(address))["choices"]) == 1


def test_a_client_that_stops_waiting_stops_its_answer(server):
    address, engine = server
    with pytest.raises((TimeoutError, urllib.error.URLError)):
        post(address, timeout=0.05, max_tokens=64)
    wait_until_idle(engine)
    assert len(json.load(post(address))["choices"]) == 1


def test_a_giant_body_gets_its_reply_on_a_socket_too(server):
    address, engine = server
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, prompt="a" * (20 << 20))
    assert refused.value.code == 413
    assert len(json.load(post(address))["choices"]) == 1


def test_more_clients_than_the_limit_are_turned_away(server):
    address, engine = server
    streams = [post(address, stream=True, max_tokens=64) for _ in range(3)]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address)
    assert refused.value.code == 429 and refused.value.headers["Retry-After"]
    for stream in streams:
        stream.close()
    wait_until_idle(engine)
    assert len(json.load(post(address))["choices"]) == 1


def test_requests_that_are_given_up_in_the_queue_make_room_at_once(server, monkeypatch):
    address, engine = server
    go_on, is_running, generate = threading.Event(), threading.Event(), engine.handle.model.generate

    def wait(**options):
        is_running.set()
        assert go_on.wait(20)
        return generate(**options)

    monkeypatch.setattr(engine.handle.model, "generate", wait)
    try:
        first = threading.Thread(target=lambda: post(address))
        first.start()
        assert is_running.wait(20)
        for _ in range(3):  # of a server that takes three
            for stream in (False, True):
                with pytest.raises((TimeoutError, urllib.error.URLError)):
                    post(address, timeout=0.3, stream=stream).read()
        stop = time.monotonic() + 10
        while engine.num_active > 1:
            assert time.monotonic() < stop, "requests that nobody waits for keep their places"
            time.sleep(0.01)
    finally:
        go_on.set()
        first.join()
    wait_until_idle(engine)


def test_an_abandoned_request_leaves_its_cache_at_once(server, monkeypatch):
    address, engine = server
    caches, model = [], engine.handle.model
    hook = model.register_forward_pre_hook(
        lambda module, args, options: caches.append(weakref.ref(options["past_key_values"])), with_kwargs=True
    )
    gc.collect()
    gc.disable()  # on a GPU nothing would hurry the collector
    try:
        response = post(address, stream=True, max_tokens=64)
        response.readline()
        response.close()
        wait_until_idle(engine)
        post(address, max_tokens=1)  # the thread lets go of what it returned
        assert len(caches) > 1 and caches[0]() is None
    finally:
        gc.enable()
        hook.remove()


def test_a_client_that_left_before_the_stream_began_stops_its_answer(app_engine):
    from elastic_attention.serving.server.app import build_app
    from elastic_attention.serving.server.metrics import ServerMetrics

    app, started, start = build_app(app_engine, name=NAME, metrics=ServerMetrics()), [], app_engine.start
    body = json.dumps({"model": NAME, "prompt": PROMPT, "max_tokens": 64, "stream": True}).encode()
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
    scope |= {"path": "/v1/completions", "query_string": b"", "headers": [(b"content-type", b"application/json")]}

    async def leave():
        messages = iter([{"type": "http.request", "body": body}])

        async def receive():
            return next(messages, {"type": "http.disconnect"})

        async def send(message):
            await asyncio.sleep(0.1)

        app_engine.start = lambda job: (started.append(job), start(job))[1]
        await app(scope, receive, send)
        assert started[0].is_abandoned.is_set()
        while app_engine.num_active:
            await asyncio.sleep(0.01)

    try:
        asyncio.run(asyncio.wait_for(leave(), 20))
    finally:
        del app_engine.start


@pytest.mark.parametrize(
    "start", [b"", b"GET /health HTTP/1.1\r\nHost: local", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"]
)
def test_a_connection_without_a_request_is_closed(server, monkeypatch, start):
    from elastic_attention.serving.server.connections import ImpatientProtocol

    monkeypatch.setattr(ImpatientProtocol, "max_head_seconds", 0.3)
    address, _ = server
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10) as client:
        client.sendall(start)
        received = b"".join(iter(lambda: client.recv(4096), b""))  # until the server closes
    assert received.count(b"200 OK") == start.endswith(b"GET")


def test_an_answer_may_take_longer_than_its_question(server, monkeypatch):
    from elastic_attention.serving.server.connections import ImpatientProtocol

    monkeypatch.setattr(ImpatientProtocol, "max_head_seconds", 0.02)
    with post(server[0], stream=True, max_tokens=64) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("budget", ["high", float("nan")])
def test_a_default_budget_that_is_no_number_is_refused_at_the_start(app_engine, budget):
    from elastic_attention.serving.server.app import build_app
    from elastic_attention.serving.server.metrics import ServerMetrics

    with pytest.raises(ValueError, match=f"budget={budget!r} is no finite number"):
        build_app(app_engine, name=NAME, metrics=ServerMetrics(), budget=budget)
