"""The two endpoints of the small server: right answers, and a proper refusal for everything else."""

import json
import re

import pytest
import torch

from elastic_attention.serving.requests import read_route_request

pytest.importorskip("fastapi")
from pydantic import ValidationError

from elastic_attention.serving.server.schema import ChatRequest, CompletionRequest

LONG = "The boat is red and the sail is white. " * 6
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def ask(**changes):
    return {"model": "tiny", "prompt": LONG, "max_tokens": 8, "temperature": 0} | changes


def converse(**changes):
    body = ask(messages=[{"role": "user", "content": LONG}], **changes)
    return {key: value for key, value in body.items() if key != "prompt"}


def read_events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def expect(engine, text, new, **extra):
    """What `generate` says, called directly."""
    asked = read_route_request(extra, engine.handle.config)
    engine.handle.budget = asked.budget
    engine.handle.set_routes(asked.routes)
    ids = torch.tensor([engine.tokenizer(text).input_ids])
    with torch.inference_mode():
        output = engine.handle.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
        )
    report = engine.handle.report()
    return engine.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True), report


@pytest.mark.parametrize("extra", [{}, {"elastic_budget": 2}, {"elastic_routes": "sparse"}, {"elastic_routes": "off"}])
def test_completion_is_what_generate_says(client, app_engine, extra):
    reply = client.post(COMPLETE, json=ask(vllm_xargs=extra)).json()
    text, report = expect(app_engine, LONG, 8, **extra)
    choice = reply["choices"][0]
    assert choice["text"] == text and choice["finish_reason"] == "length"
    assert reply["object"] == "text_completion" and reply["model"] == "tiny"
    assert reply["usage"] == {"prompt_tokens": len(LONG), "completion_tokens": 8, "total_tokens": len(LONG) + 8}
    facts = reply["kv_transfer_params"]["elastic_attention"]
    assert facts["msr"] == report["msr"][0] and facts["esr_prefill"] == report["esr_prefill"][0]
    assert facts["prompt_tokens"] == len(LONG)


def test_token_ids_are_a_prompt_too(client, app_engine):
    ids = app_engine.tokenizer(LONG).input_ids
    assert (
        client.post(COMPLETE, json=ask(prompt=ids)).json()["choices"]
        == client.post(COMPLETE, json=ask()).json()["choices"]
    )


@pytest.mark.parametrize("ids", [False, True])
def test_a_list_of_one_prompt_is_that_prompt(client, app_engine, ids):
    prompt = app_engine.tokenizer(LONG).input_ids if ids else LONG
    choices = client.post(COMPLETE, json=ask(prompt=[prompt])).json()["choices"]
    assert choices == client.post(COMPLETE, json=ask()).json()["choices"]


def test_an_answer_can_be_sent_back_with_all_its_fields(client):
    message = client.post(CHAT, json=converse()).json()["choices"][0]["message"]
    message |= dict.fromkeys(
        ["refusal", "annotations", "audio", "function_call", "tool_calls"]
    )  # a client's model_dump
    turns = [{"role": "user", "content": "a"}, message, {"role": "user", "content": "b", "name": None}]
    assert client.post(CHAT, json=converse() | {"messages": turns}).status_code == 200


def test_chat_uses_the_template(client, app_engine):
    reply = client.post(CHAT, json=converse()).json()
    text, _ = expect(app_engine, f"<user>{LONG}<reply>", 8)
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": text}
    parts = [{"role": "user", "content": [{"type": "text", "text": LONG[:9]}, {"type": "text", "text": LONG[9:]}]}]
    again = client.post(CHAT, json=converse() | {"messages": parts}).json()
    assert again["choices"] == reply["choices"]


@pytest.mark.parametrize("path, body", [(CHAT, converse), (COMPLETE, ask)])
def test_a_stream_is_the_answer_in_pieces(client, path, body):
    whole = client.post(path, json=body(max_tokens=20)).json()
    events = read_events(
        client.post(path, json=body(max_tokens=20, stream=True, stream_options={"include_usage": True}))
    )
    usage = events.pop()
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    choices = [event["choices"][0] for event in events]
    if path == CHAT:
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        text, expected = (
            "".join(c["delta"].get("content", "") for c in choices),
            whole["choices"][0]["message"]["content"],
        )
    else:
        text, expected = "".join(c["text"] for c in choices), whole["choices"][0]["text"]
    assert text == expected and len(choices) > 3
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert events[-1]["kv_transfer_params"] == whole["kv_transfer_params"]


def test_a_stop_string_ends_the_answer(client):
    text = client.post(COMPLETE, json=ask(max_tokens=40)).json()["choices"][0]["text"]
    stop = text[6:8]
    for stream in (False, True):
        response = client.post(COMPLETE, json=ask(max_tokens=40, stop=["never this", stop], stream=stream))
        if stream:
            choices = [event["choices"][0] for event in read_events(response)]
            got, reason = "".join(c["text"] for c in choices), choices[-1]["finish_reason"]
        else:
            got, reason = response.json()["choices"][0]["text"], response.json()["choices"][0]["finish_reason"]
        assert got == text[: text.index(stop)] and reason == "stop"


def test_sampling_follows_its_seed(client):
    def draw(seed):
        return client.post(COMPLETE, json=ask(temperature=1.0, seed=seed, max_tokens=24)).json()["choices"]

    assert draw(1) == draw(1) != draw(2)
    draw(1)
    unseeded = draw(None)
    draw(1)
    assert draw(None) != unseeded  # it does not go on from the seed of the request before
    assert draw(1) == draw(1)


def test_a_temperature_next_to_nothing_is_greedy(client):
    greedy = client.post(COMPLETE, json=ask()).json()["choices"]
    assert client.post(COMPLETE, json=ask(temperature=1e-300)).json()["choices"] == greedy


def test_neutral_options_of_clients_are_taken(client):
    neutral = {"n": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "user": "somebody", "stop": None}
    assert client.post(COMPLETE, json=ask(**neutral, echo=False, best_of=1)).status_code == 200
    assert client.post(CHAT, json=converse(**neutral, response_format={"type": "text"}, tools=[])).status_code == 200
    nulls = dict.fromkeys(["temperature", "top_p", "stream", "stream_options", "seed", "vllm_xargs", "logprobs"])
    assert client.post(COMPLETE, json=ask(**nulls)).status_code == 200
    assert client.post(CHAT, json=converse(**nulls, max_completion_tokens=None)).status_code == 200


REFUSED = {
    "not JSON": (COMPLETE, b'{"model": "tiny", ', 400, "JSON"),
    "no object": (COMPLETE, [1, 2], 400, "dictionary"),
    "no prompt": (COMPLETE, {"model": "tiny"}, 400, "prompt"),
    "empty prompt": (COMPLETE, ask(prompt=""), 400, "no tokens"),
    "empty list": (COMPLETE, ask(prompt=[]), 400, "prompt"),
    "two prompts": (COMPLETE, ask(prompt=["5", "6"]), 400, "one prompt, not 2"),
    "no numbers": (COMPLETE, ask(prompt=[True, False]), 400, "prompt.0: Input should be a valid integer"),
    "token outside": (COMPLETE, ask(prompt=[1, 300]), 400, "300"),
    "unknown key": (COMPLETE, ask(logit_bias={}), 400, "logit_bias"),
    "two answers": (COMPLETE, ask(n=2), 400, "n"),
    "wrong type": (COMPLETE, ask(max_tokens="many"), 400, "max_tokens"),
    "no tokens": (COMPLETE, ask(max_tokens=0), 400, "max_tokens"),
    "too many tokens": (COMPLETE, ask(max_tokens=65), 400, "64"),
    "past the limit": (COMPLETE, ask(prompt="a" * 1100), 400, "1024"),
    "no room for the answer": (COMPLETE, ask(prompt="a" * 1000, max_tokens=50), 400, "1024"),
    "another model": (COMPLETE, ask(model="huge"), 404, "huge"),
    "unknown budget": (COMPLETE, ask(vllm_xargs={"elastic_budget": "low"}), 400, "low"),
    "unknown routes": (COMPLETE, ask(vllm_xargs={"elastic_routes": "some"}), 400, "some"),
    "routes of another model": (COMPLETE, ask(vllm_xargs={"elastic_routes": "0110" * 9}), 400, "3 x 2"),
    "unknown option": (COMPLETE, ask(vllm_xargs={"elastic_bugdet": 1}), 400, "elastic_bugdet"),
    "giant body": (COMPLETE, ask(prompt="a" * 30_000), 413, "20000"),
    "budget past floats": (COMPLETE, ask(vllm_xargs={"elastic_budget": 10**400}), 400, "finite"),
    "half a character": (COMPLETE, json.dumps(ask(prompt="a \ud800")).encode(), 400, "prompt"),
    "half a character in a key": (COMPLETE, json.dumps(ask(**{"\ud800": 1})).encode(), 400, ""),
    "half a character in an option": (
        COMPLETE,
        json.dumps(ask(vllm_xargs={"elastic_\ud800": 1})).encode(),
        400,
        "vllm_xargs",
    ),
    "endless stop": (COMPLETE, ask(stop=["a" * 1001]), 400, "stop"),
    "null prompt": (COMPLETE, ask(prompt=None), 400, "prompt"),
    "unknown null": (COMPLETE, ask(logit_bias=None), 400, "logit_bias"),
    "no messages": (CHAT, converse() | {"messages": []}, 400, "messages"),
    "unknown role": (CHAT, converse() | {"messages": [{"role": "ghost", "content": "boo"}]}, 400, "role"),
    "picture": (CHAT, converse() | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
    "refused by the template": (
        CHAT,
        converse() | {"messages": [{"role": "assistant", "content": "hi"}]},
        400,
        "who asks",
    ),
    "sound": (CHAT, converse() | {"messages": [{"role": "user", "content": "a", "audio": {}}]}, 400, "audio"),
    "nowhere": ("/v1/nothing", {}, 404, "Not Found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_and_the_server_stays_up(client, case):
    path, body, status, word = REFUSED[case]
    json_type = {"content-type": "application/json"}
    data = {"content": body, "headers": json_type} if isinstance(body, bytes) else {"json": body}
    response = client.post(path, **data)
    error = response.json()["error"]
    assert response.status_code == status and word in error["message"], error
    assert client.post(COMPLETE, json=ask(max_tokens=1)).status_code == 200


def test_another_form_of_body_is_named(client):
    response = client.post(COMPLETE, data={"prompt": "a"})
    assert response.status_code == 400 and "application/json" in response.json()["error"]["message"]


MANY = 200_000
WRONG_EVERYWHERE = {
    "prompts": (CompletionRequest, ask(prompt=["a"] * MANY)),
    "token ids": (CompletionRequest, ask(prompt=[-1] * MANY)),
    "keys": (CompletionRequest, ask(**{f"key{i}": 1 for i in range(MANY)})),
    "options": (CompletionRequest, ask(vllm_xargs={f"key{i}": [] for i in range(MANY)})),
    "stops": (CompletionRequest, ask(stop=[""] * MANY)),
    "messages": (ChatRequest, {"model": "tiny", "messages": [{}] * MANY}),
    "parts": (ChatRequest, {"model": "tiny", "messages": [{"role": "user", "content": [{}] * MANY}]}),
    "keys of a message": (ChatRequest, {"model": "tiny", "messages": [{f"key{i}": 1 for i in range(MANY)}]}),
    "keys of a format": (ChatRequest, converse(response_format={f"key{i}": 1 for i in range(MANY)})),
}


@pytest.mark.parametrize("case", WRONG_EVERYWHERE)
def test_a_body_that_is_wrong_everywhere_is_refused_at_once(case):
    schema, body = WRONG_EVERYWHERE[case]
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(body)
    assert refused.value.error_count() < 10  # each takes time and memory, and nobody else is answered meanwhile


def test_a_giant_body_that_announces_nothing_is_refused(client):
    def pour():
        for _ in range(100):
            yield b"a" * 1000

    response = client.post(COMPLETE, content=pour(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and "20000" in response.json()["error"]["message"]


def test_a_refusal_does_not_send_everything_back(client):
    for changes in ({"model": "a" * 15_000}, {"k" * 15_000: 1}):
        assert len(client.post(COMPLETE, json=ask(**changes)).content) < 1500


def count_requests(client):
    text = client.get("/metrics").text
    return {end: int(float(n)) for end, n in re.findall(r'^elastic_requests_total\{end="(\w+)"\} (\S+)$', text, re.M)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_said_logged_and_counted_once(client, app_engine, monkeypatch, caplog, stream):
    def fail(**options):
        raise RuntimeError("the device is on fire")

    before = count_requests(client)
    monkeypatch.setattr(app_engine.handle.model, "generate", fail)
    response = client.post(COMPLETE, json=ask(stream=stream))
    error = read_events(response)[0]["error"] if stream else response.json()["error"]
    assert response.status_code == (200 if stream else 500) and error["type"] == "server_error"
    assert "RuntimeError" in error["message"] and "fire" not in error["message"] and "on fire" in caplog.text
    monkeypatch.undo()
    after = count_requests(client)
    assert after["failed"] == before.get("failed", 0) + 1 and after.get("refused") == before.get("refused")


def test_giant_bodies_are_counted(client):
    before = count_requests(client).get("refused", 0)
    assert client.post(COMPLETE, json=ask(prompt="a" * 30_000)).status_code == 413
    assert count_requests(client)["refused"] == before + 1


def test_other_pages(client):
    assert client.get("/health").status_code == client.head("/health").status_code == 200
    models = client.get("/v1/models").json()["data"]
    assert models[0]["id"] == "tiny" and models[0]["created"] > 0
    assert client.get("/v1/models/tiny").json() == models[0]
    assert client.get("/v1/models/an/other").json()["error"]["code"] == "model_not_found"
    assert client.get(COMPLETE).status_code == 405 and client.get(COMPLETE).headers["allow"] == "POST"
    client.post(COMPLETE, json=ask())
    text = client.get("/metrics").text
    assert (
        'elastic_requests_total{end="length"}' in text
        and "elastic_msr_sum" in text
        and "elastic_skipped_kv_bytes" in text
    )
