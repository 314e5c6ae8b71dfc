"""Peak memory of one prefill, each way in a process of its own, so that neither sees what the other one held.

`python -m elastic_attention.evaluation.memory OPTIONS` is that process; it prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ElasticAttentionError

WAYS = ("dense", "elastic")
# glibc keeps freed blocks below a threshold that grows by itself; fixed, the peak is what tensors really held.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTask:
    """What the process must load and run."""

    way: str
    model: str
    routers: str | None
    device: str
    dtype: str
    tokens: int
    new_tokens: int


def measure_memory(task: MemoryTask) -> dict[str, Any]:
    """Run `task` in a fresh process.

    Returns:
        way, tokens, loaded_bytes (peak before the prompt), peak_bytes (peak after prefill and a few new tokens).

    Raises:
        ElasticAttentionError: the process failed; carries its last line.
    """
    command = [sys.executable, "-m", "elastic_attention.evaluation.memory", json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | RETURN_MEMORY)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ElasticAttentionError(f"Measuring the memory of the {task.way} model failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def run_task(task: MemoryTask) -> dict[str, Any]:
    """Load the model, run one prompt, and read the peak."""
    from .answering import generate_answer
    from .overhead import draw_prompt
    from .session import measure_peak_bytes, open_session

    session = open_session(task.model, routers=task.routers, device=task.device, dtype=task.dtype)
    loaded = measure_peak_bytes(session.device)
    ids = draw_prompt(session, task.tokens)[0].tolist()
    generate_answer(session, ids, max_new_tokens=task.new_tokens, is_dense=task.way == "dense")
    return {
        "way": task.way,
        "tokens": task.tokens,
        "loaded_bytes": loaded,
        "peak_bytes": measure_peak_bytes(session.device),
    }


if __name__ == "__main__":
    print(json.dumps(run_task(MemoryTask(**json.loads(sys.argv[1])))))
