"""Small launches of every GPU kernel, for tools that watch a program's memory:

    TRITON_CACHE_DIR=/tmp/small python tests/kernels/small_cases.py
    TRITON_CACHE_DIR=/tmp/small PYTORCH_NO_CUDA_MEMORY_CACHING=1 \\
        compute-sanitizer --tool memcheck python tests/kernels/small_cases.py

The first call compiles, without the tool in the way. Arguments choose kernels by name. No result is checked here.
"""

import os
import sys
import time
from collections.abc import Callable

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from torch import Tensor

from elastic_attention.attention import blended_attention
from elastic_attention.config import RouterConfig, StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.kernels.block_lists import BlockLists, count_rows, find_first_blocks, pack_mask
from elastic_attention.kernels.hopper import HEAD_DIMS, attend_hidden, attend_hopper, explain_machine
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.blended import blend_triton
from elastic_attention.kernels.triton.decode import decode_paged
from elastic_attention.kernels.triton.paging import append_token, compact_rows
from elastic_attention.kernels.triton.prefill import attend_triton
from elastic_attention.kernels.triton.router import RouterWeights, route_fused
from elastic_attention.kernels.triton.xattention import build_block_lists
from elastic_attention.router import AttentionRouter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter cannot multiply bfloat16
NARROW = StreamingConfig(num_sink_tokens=64, local_window=128, block_size=64)
WIDE = StreamingConfig(num_sink_tokens=128, local_window=256, block_size=128)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def draw(batch: int, rows: int, heads: int, width: int = 64, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(batch, rows, heads, width, device=DEVICE, dtype=dtype).transpose(1, 2)


def number_modes(sequences: int, first: int = 0) -> Tensor:
    return ((torch.arange(sequences)[:, None] + torch.arange(2)) % 2 + first).int().to(DEVICE)


PADDED = Spans(
    query_start=numbers(0, 100, 150),
    query_length=numbers(150, 50, 0),
    key_start=numbers(0, 200, 250),
    key_length=numbers(250, 50, 0),
    is_packed=False,
    max_query_length=150,
)
PACKED = Spans(
    query_start=numbers(0, 1, 140),
    query_length=numbers(1, 139, 130),
    key_start=numbers(0, 1, 200),
    key_length=numbers(1, 199, 150),
    is_packed=True,
    max_query_length=139,
)


def choose_blocks(sequences: int, num_queries: int, num_keys: int, spans: Spans) -> BlockLists:
    rows, blocks = count_rows(num_queries, num_keys, 128, spans)
    first = find_first_blocks(sequences, num_queries, num_keys, 128, spans).to(DEVICE)
    last = (first[:, None] + torch.arange(rows, device=DEVICE))[:, None, :, None]
    block = torch.arange(blocks, device=DEVICE)
    mask = (torch.rand(sequences, 4, rows, blocks, device=DEVICE) < 0.4) | (block == 0) | (block == last)
    return pack_mask(mask & (block <= last), first, 128)


def attend_everything(attend: Callable[..., object], width: int) -> None:
    q, k, v = draw(3, 150, 4, width), draw(3, 250, 2, width), draw(3, 250, 2, width)
    attend(q, k, v, number_modes(3), WIDE, 0.1)
    attend(q, k, v, number_modes(3), NARROW, 0.1, spans=PADDED)
    q, k, v = draw(1, 270, 4, width), draw(1, 350, 2, width), draw(1, 350, 2, width)
    attend(q, k, v, number_modes(3), WIDE, 0.1, spans=PACKED)
    lists, dense = choose_blocks(3, 270, 350, PACKED), numbers(0, 0, 150, 199, 100, 150).view(3, 2)
    attend(q, k, v, number_modes(3, first=2), WIDE, 0.1, spans=PACKED, lists=lists, dense_rows=dense)


def hopper() -> None:
    if lack := explain_machine(DEVICE, HALF, 128):
        print("left out:", lack)
        return
    for width in HEAD_DIMS:
        attend_everything(attend_hopper, width)
        attend_hidden(draw(2, 150, 4, width), draw(2, 900, 2, width), draw(2, 900, 2, width), WIDE, 0.1)


def prefill() -> None:
    attend_everything(attend_triton, 128 if DEVICE.type == "cuda" else 16)
    attend_triton(*(draw(1, 100, heads, 80, torch.float32) for heads in (4, 2, 2)), number_modes(1), NARROW, 0.1)


def blended() -> None:
    for batch, num_queries, num_keys, spans in ((1, 100, 140, None), (3, 150, 250, PADDED)):
        q, k, v = (draw(batch, n, h).requires_grad_() for n, h in ((num_queries, 4), (num_keys, 2), (num_keys, 2)))
        route = torch.rand(batch, 2, device=DEVICE, requires_grad=True)
        blend_triton(q, k, v, route, NARROW, 0.1, spans=spans).float().square().sum().backward()


def listed() -> None:
    for pattern in (XAttentionConfig(), TriangleConfig(num_sink_tokens=64, local_window=128, block_size=64)):
        for batch, num_queries, num_keys, spans in ((1, 150, 250, None), (3, 150, 250, PADDED)):
            q, k, v = (draw(batch, n, h).requires_grad_() for n, h in ((num_queries, 4), (num_keys, 2), (num_keys, 2)))
            route = torch.rand(batch, 2, device=DEVICE, requires_grad=True)
            out = blended_attention(q, k, v, route, pattern=pattern, spans=spans, backend="triton")
            out.float().square().sum().backward()


def decode() -> None:
    for width, dtype in ((128, HALF), (64, torch.float16), (80, torch.float32)):
        pages = [torch.randn(24, 64, width, device=DEVICE, dtype=dtype) for _ in range(2)]
        table = torch.arange(24, dtype=torch.int32, device=DEVICE).view(4, 6)
        state = (*pages, table, numbers(300, 41), number_modes(2), NARROW)
        k, v = (torch.randn(2, 2, 300, width, device=DEVICE, dtype=dtype) for _ in range(2))
        positions = torch.stack([torch.arange(300), torch.arange(300) - 259]).clamp(min=-1).int().to(DEVICE)
        compact_rows(k, v, positions, *state)
        append_token(k[:, :, :1], v[:, :, :1], *state)
        decode_paged(torch.randn(2, 8, 1, width, device=DEVICE, dtype=dtype), *state, 0.1)


def xattention() -> None:
    q, k = draw(3, 150, 4), draw(3, 250, 2)
    for spans in (None, PADDED):
        build_block_lists(q, k, number_modes(3, first=1), XAttentionConfig(), 0.1, spans=spans, dense_rows=None)


def router() -> None:
    state = {name: x.to(DEVICE) for name, x in AttentionRouter(RouterConfig.for_head_dim(64)).state_dict().items()}
    keys, counts = torch.randn(2, 100, 3, 64, device=DEVICE), torch.ones(2, 100, device=DEVICE)
    route_fused(keys, counts, RouterWeights.from_state(state))


KERNELS = (hopper, prefill, blended, listed, decode, xattention, router)

if __name__ == "__main__":
    for run in KERNELS:
        if len(sys.argv) == 1 or run.__name__ in sys.argv[1:]:
            began = time.perf_counter()
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            print(f"{run.__name__}: {time.perf_counter() - began:.1f} s", flush=True)
