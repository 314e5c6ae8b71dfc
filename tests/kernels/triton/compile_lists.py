"""Compile what `build_block_lists` launches for sm_90, without a GPU; prints a JSON line per kernel."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from elastic_attention.config import XAttentionConfig
from elastic_attention.kernels.modes import LISTS
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.xattention import build_block_lists, choose_tile


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


CASE = ""
launch = JITFunction.run


def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
    print(json.dumps(dict(case=CASE, name=self.fn.__name__, **measure(kernel))), flush=True)


def go(case, *, tokens=4096, keys=None, width=128, dtype=torch.bfloat16, has_descriptors=False, **options):
    global CASE
    CASE = case
    q = torch.empty(1, tokens, 8, width, dtype=dtype).transpose(1, 2)
    k = torch.empty(1, keys or tokens, 2, width, dtype=dtype).transpose(1, 2)
    modes = torch.full((1, 2), LISTS, dtype=torch.int32)
    build_block_lists(q, k, modes, XAttentionConfig(), width**-0.5, tile=choose_tile(q, has_descriptors), **options)


if __name__ == "__main__":
    driver.set_active(Hopper())
    JITFunction.run = compile_only
    number = torch.zeros(1, dtype=torch.int32)
    spans = Spans(
        query_start=number,
        query_length=number,
        key_start=number,
        key_length=number,
        is_packed=True,
        max_query_length=2048,
    )
    dense = torch.zeros(1, 2, dtype=torch.int32)
    go("whole strides", has_descriptors=True)
    go("a cut stride", tokens=4101, has_descriptors=True, dense_rows=dense)
    go("packed, responses", spans=spans, dense_rows=dense)
    go("narrow heads", width=80, tokens=4101)
    go("float32", dtype=torch.float32)
    go("long", tokens=1 << 18, has_descriptors=True, scratch_bytes=1 << 40)
