"""A body that never ends does not keep its connection."""

import asyncio
import json

import pytest

pytest.importorskip("fastapi")

from elastic_attention.serving.server.body import BodyLimit


def serve(chunks, gap):
    """(status, error) of a body that comes in chunks with gaps in seconds, and how many refusals were counted."""
    sent, refusals = [], []

    async def app(scope, receive, send):
        while (message := await receive()).get("more_body"):
            assert message["type"] == "http.request"
        if message["type"] == "http.disconnect":
            raise ConnectionError
        await asyncio.sleep(0.3)  # an answer may take longer than a body
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    left = iter(
        [*({"type": "http.request", "body": b"a", "more_body": True} for _ in range(chunks - 1)), {"body": b"a"}]
    )

    async def receive():
        await asyncio.sleep(gap)
        return {"type": "http.request"} | message if (message := next(left, None)) else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    middleware = BodyLimit(app, max_bytes=50, max_seconds=0.2, note_refusal=lambda: refusals.append(1))
    asyncio.run(middleware({"type": "http", "headers": []}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), len(refusals)


def test_a_body_that_never_ends_is_refused():
    status, body, refusals = serve(chunks=40, gap=0.02)
    assert status == 408 and "0.2 seconds" in body["error"]["message"] and refusals == 1
    assert serve(chunks=4, gap=0.02)[0] == 200
    assert serve(chunks=60, gap=0)[0] == 413
