"""Replicas share nothing: whichever of two engines behind one server answers, the answer is the transformers path's."""

import threading
import urllib.request

import pytest
from served_models import run_reference
from test_http import FACTS, FLAGS, PROMPT, answer
from test_smollm2 import smollm2  # noqa: F401

from elastic_attention.serving.launching import open_server

COUNT, NEW = 4, 6


@pytest.mark.model
def test_two_replicas(smollm2):  # noqa: F811
    served, tokenizer = smollm2
    prompts = [FACTS[: 200 * n] + PROMPT for n in range(COUNT)]
    expected = [run_reference(served, tokenizer(prompt).input_ids, NEW) for prompt in prompts]
    replies = {}
    with open_server([*FLAGS, "enforce-eager", "--vllm-option", "data-parallel-size=2"], patience=300) as address:

        def ask(number):
            replies[number] = answer(address, prompt=prompts[number], max_tokens=NEW)

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(COUNT)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        metrics = urllib.request.urlopen(f"{address}/metrics", timeout=10).read().decode()
    for number, (tokens, facts) in enumerate(expected):
        assert replies[number]["choices"][0]["text"] == tokenizer.decode(tokens)
        assert replies[number]["kv_transfer_params"]["elastic_attention"]["msr"] == pytest.approx(facts["msr"])
    assert f"elastic_msr_count {COUNT}.0" in metrics  # of both together
    done = [line for line in metrics.splitlines() if line.startswith("vllm:request_success_total")]
    for engine in ("0", "1"):
        assert any(f'engine="{engine}"' in line and not line.endswith(" 0.0") for line in done)
