"""What the shipped kernels become on an H100 or H200: no spills, tensor cores, and they fit the shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

SHARED_MEMORY = 227 * 1024


def test_shipped_kernels_compile_for_hopper_without_spills():
    """Compiled in a process of its own, where the interpreter is off."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_attention.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    gradients = "_weigh", "sweep_queries", "sweep_keys", "sweep_block_queries", "sweep_block_keys"
    assert {kernel["name"] for kernel in found} == {"_prefill", "_blend", "_mix", *gradients}
    for kernel in found:
        print(*kernel.values(), sep="\t")  # pytest -s
        # float32 runs on the ordinary units, there for correctness: its blended kernel may spill.
        assert kernel["stack"] == kernel["local"] == 0 or "float32" in kernel["case"], kernel
        assert kernel["registers"] <= 255 and kernel["shared"] <= SHARED_MEMORY, kernel
        is_tensor = "float32" not in kernel["case"] and kernel["name"] not in ("_weigh", "_mix")
        is_tensor &= not (kernel["name"] == "sweep_block_queries" and kernel["case"].startswith("D 256"))  # tiles of 32
        assert (kernel["wgmma"] > 0) == is_tensor, kernel
