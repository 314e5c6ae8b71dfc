"""The small server on a socket: many clients at once, clients that leave, and the limit on both."""

import json
import threading
import time
import urllib.error
import urllib.request

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
