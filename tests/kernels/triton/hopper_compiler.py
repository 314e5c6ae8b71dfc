"""Launches of Triton's kernels that compile for sm_90, without a GPU, and print a JSON line per kernel."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Hopper:
    """A driver that has a target and nothing to run it on."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def measure(kernel):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return dict(
        registers=int(numbers["REG"]),
        stack=int(numbers["STACK"]),
        local=int(numbers["LOCAL"]),
        shared=kernel.metadata.shared,
        wgmma=kernel.asm["ptx"].count("wgmma.mma_async"),
    )


def compile_only(describe=str):
    """From now on launches compile; `describe()` says which case a kernel is compiled for."""
    launch = JITFunction.run

    def compile_one(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        print(json.dumps({"case": describe(), "name": self.fn.__name__, **measure(kernel)}), flush=True)

    driver.set_active(Hopper())
    JITFunction.run = compile_one
