"""`elastic-attn serve` and `elastic-attn bench serve`: what they refuse, and one short life of a server."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import attach
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.serving.address import find_free_port
from elastic_attention.serving.launching import open_server
from elastic_attention.serving.vllm.launch import build_flags
from tiny_models import elastic_config, make_model

HERE = ["--engine", "transformers"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--routers", "a", "--routers", "b"], "2 times"),
        (["--vllm-option", "x=1", *HERE], "--vllm-option x=1 needs --engine vllm"),
        (["--policy", "probe", *HERE], "--policy probe needs --engine vllm"),
        (["--first-chunk-tokens", "512", *HERE], "--first-chunk-tokens 512 needs --engine vllm"),
        (["--model", "nowhere", *HERE], "nowhere"),
        (["--budget", "nan", *HERE], "--budget nan"),
    ],
)
def test_what_does_not_fit(call, arguments, word):
    code, _, err = call("serve", "--port", find_free_port(), *arguments)
    assert code == 2 and word in err


def test_an_address_that_is_taken_is_named_before_a_model_is_loaded(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call("serve", *HERE, "--model", "nowhere", "--port", port)
    assert code == 2 and f"port {port}: Address already in use. Choose another --port" in err
    code, _, err = call("serve", *HERE, "--model", "nowhere", "--host", "192.0.2.1")
    assert code == 2 and "Cannot listen on 192.0.2.1" in err


def test_the_adapter_of_another_model(call, tiny, tmp_path):
    other = make_model("qwen3", head_dim=32)
    attach(other, elastic_config(other)).save_pretrained(tmp_path / "other")
    code, _, err = call("serve", *HERE, *tiny[:2], "--routers", tmp_path / "other", "--device", "cpu")
    assert code == 2 and "do not fit" in err
    code, _, err = call("serve", *HERE, *tiny, "--context", 1 << 20)
    assert code == 2 and "past the 2048 tokens" in err


def test_a_server_that_does_not_start_says_why():
    with (
        pytest.raises(ElasticAttentionError, match="did not start.*nowhere"),
        open_server(["--model", "nowhere", *HERE]),
    ):
        pass


def test_one_life(tiny, tmp_path):
    record = tmp_path / "serve.json"
    with open_server([*HERE, *tiny, "--served-name", "tiny", "--json", str(record)]) as address:
        body = {"model": "tiny", "prompt": "The boat is red. " * 9, "max_tokens": 3, "temperature": 0}
        request = urllib.request.Request(
            f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 3
        foreign = urllib.request.Request(f"{address}/v1/models", headers={"host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=60)
        bench = [
            sys.executable,
            "-c",
            "from elastic_attention.cli import main; main()",
            "bench",
            "serve",
            "--url",
            address,
        ]
        sizes = ["--tokens", "512", "--requests", "1", "--new-tokens", "2", "--concurrency", "1"]
        measured = tmp_path / "bench.json"
        done = subprocess.run([*bench, *sizes, "--json", str(measured)], capture_output=True, text=True, timeout=120)
        # Words are bytes to the tiny model, so its context is too short for these prompts, and that is what is said.
        assert done.returncode == 2 and "together more than the 2048" in done.stderr
    served = json.loads(record.read_text())["metrics"]["rows"][0]
    assert served["requests_length"] == 1 and served["new_tokens"] == 3


def test_load_on_a_server_of_its_own(call, tiny, tmp_path):
    model = make_model(vocab_size=300, max_position_embeddings=8192)  # words are bytes to it
    model.save_pretrained(tmp_path / "model")
    make_byte_tokenizer().save_pretrained(tmp_path / "model")
    sizes = ["--tokens", 512, "--requests", 2, "--new-tokens", 2, "--concurrency", 2, "--json", "bench.json"]
    code, out, err = call("bench", "serve", "--model", tmp_path / "model", *tiny[2:4], *HERE, *sizes)
    assert code == 0 and "TTFT ms" in out, err
    rows = json.loads((tmp_path / "bench.json").read_text())["metrics"]["rows"]
    assert [(row["way"], row["n"], row["concurrency"]) for row in rows] == [("elastic", 2, 2), ("dense", 2, 2)]
    assert rows[1]["msr"] == 0 < rows[0]["msr"]


def test_flags_of_vllm():
    flags = build_flags({"policy": "probe"}, {"port": 80, "dtype": None}, ["--tensor-parallel-size=2", "enforce-eager"])
    assert flags[0] == "--additional-config" and json.loads(flags[1]) == {"elastic_attention": {"policy": "probe"}}
    assert flags[2:] == ["--port", "80", "--tensor-parallel-size", "2", "--enforce-eager"]
    for serving, option in (({"policy": "guess"}, "x"), ({}, "--=3")):
        with pytest.raises(ElasticAttentionError):
            build_flags(serving, {}, [option])
