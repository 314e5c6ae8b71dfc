"""Makes small records as the commands write them."""

from typing import Any

from elastic_attention.records import build_record

NUM_LAYERS, NUM_KV_HEADS = 4, 3


def make_record(command: str, metrics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "config": {"local_window": 512},
        "model": {"name": "tiny-model", "layers": NUM_LAYERS},
        "data": "made up",
        "device": "CPU, 2 threads",
        "seed": 7,
        "n": 3,
        "seconds": 12.5,
        "bytes": None,
    }
    return build_record(command, metrics=metrics, **(values | changes))


def make_demo_row(task: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "prompt_tokens": 4096,
        "expected": "7421",
        "answer": "7421",
        "correct": True,
        "msr": 0.75,
        "esr_prefill": 0.66,
        "esr_decode": 0.61,
        "prefill_seconds": 2.0,
        "prefill_seconds_dense": 3.0,
        "kv_bytes": 25 * 2**20,
        "kv_bytes_dense": 100 * 2**20,
    } | changes
