"""`elastic-attn serve` over vLLM: the command that users type, in processes of its own."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from elastic_attention.serving.launching import open_server

FACTS = "The grass is green. The sky is blue. " * 50
KEY = "The key of the red house lies under the third stone. "
PROMPT = FACTS + KEY + FACTS + "\n\nThe key of the red house lies under the"
FLAGS = ["--model", "smollm2", "--engine", "vllm", "--dtype", "float32", "--context", "2048", "--vllm-option"]


@pytest.fixture(scope="module")
def address(engines):
    """The address of a running server."""
    engines.close()
    with open_server([*FLAGS, "enforce-eager"], patience=300) as address:
        yield address


def post(address, path="completions", timeout=100, **changes):
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": 6, "temperature": 0} | changes
    if path == "chat/completions":
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    headers = {"content-type": "application/json"} | ({"host": body.pop("host")} if "host" in body else {})
    data = body.pop("raw", None) or json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/{path}", data, headers)
    return urllib.request.urlopen(request, timeout=timeout)


def answer(address, **changes):
    return json.load(post(address, **changes))


@pytest.mark.model
def test_answers_carry_their_routes(address):
    reply = answer(address)
    facts = reply["kv_transfer_params"]["elastic_attention"]
    assert "third stone" in reply["choices"][0]["text"]
    assert facts["routed"] and 0.5 < facts["msr"] < 1 and facts["prompt_tokens"] == reply["usage"]["prompt_tokens"]
    dense = answer(address, vllm_xargs={"elastic_routes": "off"})["kv_transfer_params"]["elastic_attention"]
    assert not dense["routed"] and dense["msr"] == 0
    fuller = answer(address, path="chat/completions", vllm_xargs={"elastic_budget": -1e6})
    assert fuller["kv_transfer_params"]["elastic_attention"]["msr"] == 0
    assert b"[DONE]" in post(address, stream=True).read()
    text = urllib.request.urlopen(f"{address}/metrics", timeout=10).read().decode()
    page = urllib.request.Request(f"{address}/health", headers={"origin": "https://page.example"})
    assert urllib.request.urlopen(page, timeout=10).headers["access-control-allow-origin"] is None
    assert "elastic_msr_count" in text and "elastic_skipped_kv_bytes_total" in text and "elastic_esr_sum" in text


BAD = {
    "budget": ({"vllm_xargs": {"elastic_budget": "low"}}, 400, "low"),
    "routes": ({"vllm_xargs": {"elastic_routes": "some"}}, 400, "30 x 3"),
    "too long": ({"prompt": PROMPT * 4}, 400, "2048"),
    "another model": ({"model": "huge"}, 404, "huge"),
    "not JSON": ({"raw": b'{"model": '}, 400, "JSON"),
    "giant prompt": ({"prompt": "a b " * 2_000_000}, 400, "2048"),
    "giant body": ({"prompt": "a b " * 2_200_000}, 413, "8388608"),
    "another host": ({"host": "evil.example"}, 403, "--allowed-host evil.example"),
}


@pytest.mark.model
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_the_server_stays_up(address, case):
    changes, status, word = BAD[case]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, **changes)
    assert refused.value.code == status and word.lower() in refused.value.read().decode().lower()
    assert answer(address, prompt="Hi", max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.model
def test_clients_that_leave_change_nothing_for_others(address):
    expected = answer(address)["choices"][0]["text"]
    replies = []
    stayers = [threading.Thread(target=lambda: replies.append(answer(address))) for _ in range(2)]
    for thread in stayers:
        leaver = post(address, stream=True, max_tokens=200)
        thread.start()
        leaver.readline()
        leaver.close()
    for thread in stayers:
        thread.join()
    assert [reply["choices"][0]["text"] for reply in replies] == [expected] * 2
