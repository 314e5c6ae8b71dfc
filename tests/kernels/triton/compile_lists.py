"""Compile what `build_block_lists` launches for sm_90, without a GPU; prints a JSON line per kernel."""

import torch
from hopper_compiler import compile_only

from elastic_attention.config import XAttentionConfig
from elastic_attention.kernels.modes import LISTS
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.xattention import build_block_lists, choose_tile

CASE = ""


def go(case, *, tokens=4096, keys=None, width=128, dtype=torch.bfloat16, has_descriptors=False, **options):
    global CASE
    CASE = case
    q = torch.empty(1, tokens, 8, width, dtype=dtype).transpose(1, 2)
    k = torch.empty(1, keys or tokens, 2, width, dtype=dtype).transpose(1, 2)
    modes = torch.full((1, 2), LISTS, dtype=torch.int32)
    build_block_lists(q, k, modes, XAttentionConfig(), width**-0.5, tile=choose_tile(q, has_descriptors), **options)


if __name__ == "__main__":
    compile_only(lambda: CASE)
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
