"""Compile prefill, blended attention and their gradients for sm_90, without a GPU; prints a JSON line per kernel."""

import torch
from hopper_compiler import compile_only

from elastic_attention import StreamingConfig
from elastic_attention.kernels.block_lists import BlockLists
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton import backward, blended, block_gradients, mixing, prefill, shapes

CASE = ""


def go(width, *, dtype=torch.bfloat16, block=128, group=4, layout="whole", with_lists=False, with_rows=False):
    global CASE
    names = [name for name, is_there in (("lists", with_lists), ("dense rows", with_rows)) if is_there]
    CASE = ", ".join([f"D {width}", str(dtype)[6:], f"blocks of {block}", f"group of {group}", layout, *names])
    tokens, kv_heads = 1024, 2
    q = torch.empty(1, tokens, kv_heads * group, width, dtype=dtype).transpose(1, 2)
    k, v = (torch.empty(1, tokens, kv_heads, width, dtype=dtype).transpose(1, 2) for _ in range(2))
    config = StreamingConfig(num_sink_tokens=block, local_window=16 * block, block_size=block)
    number = torch.zeros(1, dtype=torch.int32)
    spans = Spans(
        query_start=number,
        query_length=number,
        key_start=number,
        key_length=number,
        is_packed=layout.endswith("packed"),
        max_query_length=tokens,
        is_whole=layout == "whole packed",
    )
    given = None if layout == "whole" else spans
    counts, indices = (
        torch.zeros(1, q.shape[1], 8, dtype=torch.int32),
        torch.zeros(1, q.shape[1], 36, dtype=torch.int16),
    )
    lists = BlockLists(counts=counts, indices=indices, block_size=128) if with_lists else None
    rows = torch.zeros(1, 2, dtype=torch.int32) if with_rows else None
    modes, route = torch.zeros(1, kv_heads, dtype=torch.int32), torch.zeros(1, kv_heads)
    scale = width**-0.5
    prefill.attend_triton(q, k, v, modes, config, scale, spans=given, lists=lists, dense_rows=rows)
    if with_lists:
        lse, seen = torch.empty(q.shape[:3]), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        block_gradients.differentiate_blocks(q, q, k, v, q, lse, seen, rows, 128, scale, given)
    if lists is None and rows is None:
        shape = shapes.choose_shape(q, is_blended=True)
        _, paths = blended.launch_blend(q, k, v, route, config, scale, given, shape, shapes.takes_descriptors(q))
        backward.differentiate(q, q, k, v, route, paths, config, scale, given)
        for is_parted in (False, True):
            mixing.mix_paths(route, paths, k.shape[2], given, is_parted=is_parted)


if __name__ == "__main__":
    compile_only(lambda: CASE)
    shapes.has_descriptors, shapes._find_capability = lambda device: True, lambda device: 9
    go(64, group=3)
    go(64, block=64, layout="padded")
    go(128)
    go(128, block=64, group=3)
    go(128, layout="packed", block=64)
    go(128, layout="whole packed")
    go(64, layout="packed", group=7, with_lists=True, with_rows=True)
    go(128, with_lists=True)
    go(128, layout="padded", with_lists=True, with_rows=True, block=64)
    go(256, group=2)
    go(256, layout="packed", with_lists=True, with_rows=True, block=64)
    go(64, dtype=torch.float32, group=1)
