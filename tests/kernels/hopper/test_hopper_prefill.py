"""The hopper kernel against masks in float64, on a GPU of capability 9; nothing here runs elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_attention.config import StreamingConfig
from elastic_attention.kernels.block_lists import count_rows, find_first_blocks, pack_mask
from elastic_attention.kernels.hopper import attend_hidden, attend_hopper, explain_machine, explain_tensors
from elastic_attention.kernels.modes import FULL, LISTS, STREAMING, TRIANGLE
from elastic_attention.kernels.spans import Spans
from elastic_attention.patterns.streaming import StreamingPattern

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
HIDDEN = -1  # in the place of a mode: what STREAMING leaves out
NARROW = StreamingConfig(num_sink_tokens=128, local_window=256, block_size=128)


def draw(batch: int, rows: int, heads: int, width: int = 128, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(batch, heads, rows, width), a view of (batch, rows, heads, width)."""
    return torch.randn(batch, rows, heads, width, device="cuda", dtype=dtype).transpose(1, 2)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def alternate(sequences: int, heads: int) -> Tensor:
    places = torch.arange(sequences)[:, None] + torch.arange(heads)
    return torch.where(places % 2 == 0, FULL, STREAMING).int().cuda()


def locate(spans: Spans | None, sequence: int, q: Tensor, k: Tensor) -> tuple[int, slice, slice]:
    """Element, query rows and key rows of a sequence."""
    if spans is None:
        return sequence, slice(0, q.shape[2]), slice(0, k.shape[2])
    starts = int(spans.query_start[sequence]), int(spans.key_start[sequence])
    lengths = int(spans.query_length[sequence]), int(spans.key_length[sequence])
    rows = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return 0 if spans.is_packed else sequence, rows[0], rows[1]


def attend_masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig,
    spans: Spans | None,
    list_mask: Tensor | None,
    dense_rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What the kernel promises, in float64."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64, device="cuda")
    lse = torch.full(q.shape[:3], float("-inf"), dtype=torch.float64, device="cuda")
    for sequence, row in enumerate(modes.tolist()):
        element, queries, keys = locate(spans, sequence, q, k)
        num_queries, num_keys = queries.stop - queries.start, keys.stop - keys.start
        if not num_queries:
            continue
        key = torch.arange(num_keys, device="cuda")[None]
        query = key[:, num_keys - num_queries :].T
        dense = torch.zeros_like(query, dtype=torch.bool)
        if dense_rows is not None:
            dense = (query >= dense_rows[sequence, 0]) & (query < dense_rows[sequence, 1])
        for head in range(q.shape[1]):
            mode = row[head // group]
            if mode == FULL:
                seen = torch.ones_like(query == key)
            elif mode == LISTS:
                assert list_mask is not None
                blocks = query[:, 0] // 128 - (num_keys - num_queries) // 128
                seen = list_mask[sequence, head][blocks][:, key[0] // 128] | dense
            else:
                seen = StreamingPattern(config).is_visible(query, key)
                seen = ~seen if mode == HIDDEN else seen | dense if mode == TRIANGLE else seen
            scores = q[element, head, queries].double() @ k[element, head // group, keys].double().T
            scores = (scores * q.shape[3] ** -0.5).masked_fill(~(seen & (key <= query)), float("-inf"))
            out[element, head, queries] = scores.softmax(-1).nan_to_num() @ v[element, head // group, keys].double()
            lse[element, head, queries] = scores.logsumexp(-1)
    return out, lse


def poison(x: Tensor, starts: Tensor, lengths: Tensor, is_packed: bool) -> None:
    """NaN wherever no sequence lies."""
    is_real = torch.zeros(x.shape[0], x.shape[2], dtype=torch.bool, device="cuda")
    for sequence, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        is_real[0 if is_packed else sequence, start : start + length] = True
    x.masked_fill_(~is_real[:, None, :, None], float("nan"))


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    modes: Tensor,
    config: StreamingConfig = NARROW,
    spans: Spans | None = None,
    list_mask: Tensor | None = None,
    dense_rows: Tensor | None = None,
) -> None:
    expected, expected_lse = attend_masked(q, k, v, modes, config, spans, list_mask, dense_rows)
    if spans is not None:
        poison(q, spans.query_start, spans.query_length, spans.is_packed)
        poison(k, spans.key_start, spans.key_length, spans.is_packed)
        poison(v, spans.key_start, spans.key_length, spans.is_packed)
    lists = None
    if list_mask is not None:
        firsts = find_first_blocks(len(modes), q.shape[2], k.shape[2], 128, spans).cuda()
        lists = pack_mask(list_mask, firsts, 128)
    assert explain_machine(q.device, q.dtype, q.shape[3]) is None
    assert explain_tensors(q, k, v, None if lists is None else lists.block_size) is None
    for _ in range(2):  # the second launch finds the counter that the first one left
        garbage = torch.full((1 << 24,), float("nan"), device="cuda")
        del garbage  # its memory is what the next outputs start from
        given = config, q.shape[3] ** -0.5
        if (modes == HIDDEN).all():
            out, lse = attend_hidden(q, k, v, *given, spans=spans)
            out = out.masked_fill((lse == float("-inf"))[..., None], 0.0)  # nobody writes those rows
        else:
            out, lse = attend_hopper(q, k, v, modes, *given, spans=spans, lists=lists, dense_rows=dense_rows)
        # Weights and outputs are rounded to the inputs' type: relative error about its epsilon.
        error = (out.double() - expected).norm()
        assert error <= 2 * torch.finfo(q.dtype).eps * expected.norm()
        assert torch.isfinite(out).all()
        is_real = torch.isfinite(expected_lse)
        assert ((lse.double() - expected_lse).abs() < 1e-4 + 1e-6 * expected_lse.abs())[is_real].all()
        assert (lse[~is_real] == float("-inf")).all() and (out[~is_real] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
    ("batch", "num_queries", "num_keys", "heads", "kv_heads"),
    [(1, 128, 128, 1, 1), (2, 333, 3021, 4, 2), (3, 1, 700, 4, 4), (1, 1000, 1000, 8, 1), (1, 2304, 2304, 6, 2)],
)
def test_full_and_streaming_heads(
    batch: int, num_queries: int, num_keys: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    q = draw(batch, num_queries, heads, width, dtype)
    k, v = (draw(batch, num_keys, kv_heads, width, dtype) for _ in range(2))
    check(q, k, v, alternate(batch, kv_heads))


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("width", "dtype"), [(128, torch.bfloat16), (128, torch.float16), (64, torch.bfloat16)])
def test_scores_that_outgrow_those_of_the_first_tile(width: int, dtype: torch.dtype, block: int) -> None:
    config = StreamingConfig(num_sink_tokens=block, local_window=2 * block, block_size=block)
    q, k, v = (draw(1, rows, heads, width, dtype) for rows, heads in ((1100, 4), (1500, 2), (1500, 2)))
    k[:, :, 5] *= 40  # no exponent of float32 reaches from the diagonal's scores to these
    k[:, :, 700] *= 25
    check(4 * q, k, v, alternate(1, 2), config)


@pytest.mark.parametrize(
    ("block", "sink", "window"), [(64, 64, 512), (64, 192, 64), (16, 16, 48), (32, 96, 480), (128, 384, 128)]
)
def test_blocks_that_do_not_fill_a_tile(block: int, sink: int, window: int) -> None:
    config = StreamingConfig(num_sink_tokens=sink, local_window=window, block_size=block)
    check(draw(1, 900, 4), draw(1, 1333, 2), draw(1, 1333, 2), alternate(1, 2), config)


def test_head_major_and_sliced_tensors() -> None:
    q = torch.randn(2, 4, 500, 128, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(2, 2, 800, 128, device="cuda", dtype=torch.bfloat16)
    v = torch.randn(2, 2, 900, 128, device="cuda", dtype=torch.bfloat16)[:, :, :800]
    check(q, k, v, alternate(2, 2))


@pytest.mark.parametrize("block", [64, 128])
def test_padded_batch(block: int) -> None:
    config = StreamingConfig(num_sink_tokens=block, local_window=2 * block, block_size=block)
    spans = Spans(
        query_start=numbers(0, 100, 555, 700, 0),
        query_length=numbers(700, 600, 145, 0, 130),
        key_start=numbers(0, 300, 755, 900, 0),
        key_length=numbers(900, 600, 145, 0, 130),
        is_packed=False,
        max_query_length=700,
    )
    check(draw(5, 700, 4), draw(5, 900, 2), draw(5, 900, 2), alternate(5, 2), config, spans)


def pack() -> Spans:
    return Spans(
        query_start=numbers(0, 1, 300, 300),
        query_length=numbers(1, 299, 0, 900),
        key_start=numbers(0, 1, 400, 400),
        key_length=numbers(1, 399, 0, 900),
        is_packed=True,
        max_query_length=900,
    )


@pytest.mark.parametrize("block", [64, 128])
def test_packed_batch(block: int) -> None:
    config = StreamingConfig(num_sink_tokens=block, local_window=2 * block, block_size=block)
    check(draw(1, 1200, 4), draw(1, 1300, 2), draw(1, 1300, 2), alternate(4, 2), config, pack())


def test_gaps_between_packed_sequences() -> None:
    spans = Spans(
        query_start=numbers(70, 300, 700),
        query_length=numbers(130, 1, 290),
        key_start=numbers(10, 400, 500),
        key_length=numbers(300, 64, 700),
        is_packed=True,
        max_query_length=290,
    )
    check(draw(1, 1200, 4), draw(1, 1300, 2), draw(1, 1300, 2), alternate(3, 2), spans=spans)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("layout", ["whole", "last queries", "short", "padded", "packed"])
def test_hidden_keys(layout: str, width: int) -> None:
    rows = {"whole": (1500, 1500), "last queries": (130, 1300), "short": (300, 300)}.get(layout, (1200, 1300))
    batch, sequences, spans = (1, 4, pack()) if layout == "packed" else (2, 2, None)
    if layout == "padded":
        names = ("query_start", "query_length", "key_start", "key_length")
        places = numbers(0, 1100), numbers(1200, 100), numbers(0, 400), numbers(1300, 900)
        spans = Spans(**dict(zip(names, places, strict=True)), is_packed=False, max_query_length=1200)
    q, k, v = draw(batch, rows[0], 4, width), draw(batch, rows[1], 2, width), draw(batch, rows[1], 2, width)
    check(q, k, v, torch.full((sequences, 2), HIDDEN, device="cuda"), spans=spans)


def test_hidden_keys_need_whole_blocks() -> None:
    x = draw(1, 300, 2)
    with pytest.raises(ValueError, match="block_size is 64"):
        attend_hidden(x, x, x, StreamingConfig(num_sink_tokens=64, local_window=128, block_size=64), 0.1)


def choose_blocks(q: Tensor, k: Tensor, sequences: int, spans: Spans | None, dense_rows: Tensor | None) -> Tensor:
    """A random list mask that keeps the promises of `BlockLists`."""
    rows, blocks = count_rows(q.shape[2], k.shape[2], 128, spans)
    last = find_first_blocks(sequences, q.shape[2], k.shape[2], 128, spans).cuda()[:, None] + torch.arange(
        rows, device="cuda"
    )
    block = torch.arange(blocks, device="cuda")
    mask = torch.rand(sequences, q.shape[1], rows, blocks, device="cuda") < 0.4
    mask |= (block == 0) | (block == last[:, None, :, None])
    if dense_rows is not None:
        mask |= ((dense_rows[:, :1] <= last * 128) & (dense_rows[:, 1:] >= last * 128 + 128))[:, None, :, None]
    return mask & (block <= last[:, None, :, None])


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("has_dense_rows", [False, True])
def test_lists(is_packed: bool, has_dense_rows: bool) -> None:
    spans, sequences = (pack(), 4) if is_packed else (None, 2)
    q, k, v = (
        draw(1 if is_packed else 2, 1200, 4),
        draw(1 if is_packed else 2, 1300, 2),
        draw(1 if is_packed else 2, 1300, 2),
    )
    dense = numbers(0, 0, 350, 399, 0, 0, 640, 900).view(4, 2)[-sequences:].contiguous() if has_dense_rows else None
    modes = torch.tensor([[LISTS, s % 4] for s in range(sequences)], dtype=torch.int32, device="cuda")
    if not has_dense_rows:
        modes[modes == TRIANGLE] = FULL
    check(q, k, v, modes, NARROW, spans, choose_blocks(q, k, sequences, spans, dense), dense)


@pytest.mark.parametrize("rows", [(1472, 1500), (1300, 1500), (1152, 1280), (0, 0), (700, 1400)])
def test_triangle(rows: tuple[int, int]) -> None:
    modes = torch.tensor([[TRIANGLE, STREAMING]], dtype=torch.int32, device="cuda")
    check(draw(1, 1500, 4), draw(1, 1500, 2), draw(1, 1500, 2), modes, dense_rows=numbers(*rows).view(1, 2))


@pytest.fixture
def captured() -> Callable[[Callable[[], Any]], tuple[torch.cuda.CUDAGraph, Any]]:
    def capture(function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        function()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
        return graph, result

    return capture


def test_one_graph_serves_every_routing(
    captured: Callable[[Callable[[], Any]], tuple[torch.cuda.CUDAGraph, Any]],
) -> None:
    q, k, v = draw(1, 1000, 4), draw(1, 1000, 2), draw(1, 1000, 2)
    modes = alternate(1, 2)
    graph, (out, _) = captured(lambda: attend_hopper(q, k, v, modes, NARROW, 128**-0.5))
    for routing in ([FULL, FULL], [STREAMING, FULL], [STREAMING, STREAMING]):
        modes.copy_(numbers(*routing).view(1, 2))
        graph.replay()
        assert torch.equal(out, attend_hopper(q, k, v, modes, NARROW, 128**-0.5)[0])
