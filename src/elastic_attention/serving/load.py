"""Loading an OpenAI-compatible server with concurrent long prompts of mixed kinds, and timing its answers."""

import http.client
import json
import re
import statistics
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import ElasticAttentionError
from ..tasks import Corpora, generate
from .requests import ROUTES

KINDS = ("needle", "lookup", "prose", "code", "subject", "most_frequent")
WAYS = {"elastic": "auto", "dense": "off"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One answer, in seconds from when it was asked for.

    Attributes:
        first, last: when its first and its last text came.
    """

    prompt_tokens: int
    new_tokens: int
    first: float
    last: float


class WordTokenizer:
    """Words and signs as tokens: long prompts need a length, not a vocabulary."""

    def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
        """{"input_ids": ...} of a text or of a list of texts."""
        if isinstance(text, list):
            return {"input_ids": [self._encode(part) for part in text]}
        return {"input_ids": self._encode(text)}

    def _encode(self, text: str) -> list[int]:
        return [zlib.crc32(part.encode()) for part in re.findall(r"\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s+", text)]

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool, tokenize: bool) -> str:
        """The messages' text."""
        return "\n".join(message["content"] for message in messages) + "\n"


def draw_prompts(corpora: Corpora, *, count: int, tokens: int, seed: int) -> list[str]:
    """Long prompts of about `tokens` words, kind by kind in turn."""
    tokenizer = WordTokenizer()
    samples = [
        generate(KINDS[i % len(KINDS)], seed=seed, index=i, target_tokens=tokens, corpora=corpora, tokenizer=tokenizer)
        for i in range(count)
    ]
    return [sample.context + sample.question + sample.answer_prefix for sample in samples]


class ServerClient:
    """A client of one server.

    Attributes:
        model: what the server calls its model.
    """

    def __init__(self, url: str, *, timeout: float = 600.0) -> None:
        """`url`: scheme, host and port, without /v1.

        Raises:
            ElasticAttentionError: nobody answers there.
        """
        self._url, self._timeout = url.rstrip("/"), timeout
        try:
            with urllib.request.urlopen(f"{self._url}/v1/models", timeout=10) as response:
                self.model = json.load(response)["data"][0]["id"]
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ElasticAttentionError(
                f"{url} is no OpenAI-compatible server ({error}); start one, or name another."
            ) from error

    def ask(self, prompt: str, *, new_tokens: int, way: str) -> Timing:
        """Stream one greedy answer.

        Raises:
            ElasticAttentionError: the server refuses; the message is its own.
        """
        body = {"model": self.model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}, "vllm_xargs": {ROUTES: WAYS[way]}}
        parts = urlsplit(self._url)
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = connect(parts.hostname or "", parts.port, timeout=self._timeout)
        started = time.perf_counter()
        try:
            connection.request(
                "POST", f"{parts.path}/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            if response.status != 200:
                raise ElasticAttentionError(
                    f"{self._url}: {response.status} {response.read(400).decode(errors='replace')}"
                )
            return self._time(response, started)
        finally:
            connection.close()

    def _time(self, response: http.client.HTTPResponse, started: float) -> Timing:
        first = last = 0.0
        usage = {"prompt_tokens": 0, "completion_tokens": 0}
        for event in _read_events(response):
            if "error" in event:
                raise ElasticAttentionError(f"{self._url}: {event['error']}")
            if any(choice.get("text") for choice in event.get("choices", ())):
                last = time.perf_counter() - started
                first = first or last
            usage = event.get("usage") or usage
        if not usage["completion_tokens"]:
            raise ElasticAttentionError(f"{self._url} sent no answer; see its log.")
        last = last or time.perf_counter() - started  # tokens without a text, such as an end mark alone
        first = first or last
        return Timing(
            prompt_tokens=usage["prompt_tokens"], new_tokens=usage["completion_tokens"], first=first, last=last
        )

    def read_msr(self) -> tuple[float, float]:
        """Sum and number of the MSRs of all requests so far."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=10) as response:
            text = response.read().decode()
        found = {name: float(value) for name, value in re.findall(r"^elastic_msr_(sum|count) (\S+)$", text, re.M)}
        return found.get("sum", 0.0), found.get("count", 0.0)


def _read_events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.strip().removeprefix(b"data: ")
        if data and data != b"[DONE]":
            yield json.loads(data)


def measure_load(
    client: ServerClient, prompts: Sequence[str], *, concurrency: int, new_tokens: int, way: str
) -> dict[str, Any]:
    """Ask for all prompts, `concurrency` at a time.

    Returns:
        A row: way, concurrency, n, prompt_tokens (mean), msr (mean, None where no request was counted), and in
        milliseconds ttft_median, ttft_p95, tpot_median; new tokens a second; seconds of the whole.
    """
    before, started = client.read_msr(), time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        timings = list(pool.map(lambda prompt: client.ask(prompt, new_tokens=new_tokens, way=way), prompts))
    seconds, after = time.perf_counter() - started, client.read_msr()
    first = sorted(1000 * timing.first for timing in timings)
    gaps = [1000 * (t.last - t.first) / (t.new_tokens - 1) for t in timings if t.new_tokens > 1]
    counted = after[1] - before[1]
    return {
        "way": way,
        "concurrency": concurrency,
        "n": len(timings),
        "prompt_tokens": statistics.fmean(timing.prompt_tokens for timing in timings),
        "msr": (after[0] - before[0]) / counted if counted else None,
        "ttft_median_ms": statistics.median(first),
        "ttft_p95_ms": first[min(len(first) - 1, int(0.95 * len(first)))],
        "tpot_median_ms": statistics.median(gaps) if gaps else None,
        "new_tokens_per_second": sum(timing.new_tokens for timing in timings) / seconds,
        "seconds": seconds,
    }
