"""Compile decode and paging for sm_90, without a GPU; prints a JSON line per kernel."""

import torch
from hopper_compiler import compile_only

from elastic_attention import StreamingConfig
from elastic_attention.kernels.triton import decode as kernels
from elastic_attention.kernels.triton.decode import DecodeWorkspace, choose_decode_shape, launch_decode
from elastic_attention.kernels.triton.paging import append_token, compact_rows

CASE = ""


def go(width, group, dtype, *, has_engine=False, page_size=128):
    global CASE
    CASE = f"D {width}, {group} queries a key, {dtype}, engine {has_engine}"
    config = StreamingConfig(num_sink_tokens=page_size, local_window=4 * page_size, block_size=page_size)
    q = torch.empty(2, 2 * group, 1, width, dtype=dtype)
    pages = torch.empty(2, 8, page_size, width, dtype=dtype)
    table = torch.empty(4, 5, dtype=torch.int32)
    lengths, modes = torch.empty(2, dtype=torch.int32), torch.empty(2, 2, dtype=torch.int32)
    kernels.has_descriptors = lambda device: has_engine
    choose_decode_shape.cache_clear()
    shape = choose_decode_shape(q.device, dtype, width, group, page_size)
    workspace = DecodeWorkspace(2, 2 * group, 2, width, q.device, 132)
    launch_decode(q, *pages, table, lengths, modes, config, 0.1, workspace, shape)
    if group == 1 and not has_engine:
        new = torch.empty(2, 2, 2, 4096, width, dtype=dtype)
        append_token(*new[..., :1, :], *pages, table, lengths, modes, config)
        compact_rows(*new, torch.empty(2, 4096, dtype=torch.int32), *pages, table, lengths, modes, config)


if __name__ == "__main__":
    compile_only(lambda: CASE)
    for width, group in ((64, 1), (80, 7), (128, 4), (128, 1), (128, 16), (256, 2), (256, 8)):
        for has_engine in (False, True):
            go(width, group, torch.bfloat16, has_engine=has_engine)
        go(width, group, torch.float32)
    for has_engine in (False, True):
        go(64, 3, torch.float16, has_engine=has_engine, page_size=64)
        go(128, 4, torch.float16, has_engine=has_engine, page_size=64)
    go(128, 32, torch.bfloat16, has_engine=True)
