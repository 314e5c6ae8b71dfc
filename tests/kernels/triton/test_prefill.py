"""Backend "triton" against the oracle: every mode, every way a batch is laid out, forward and backward."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.kernels.block_lists import pack_mask
from elastic_attention.kernels.modes import FULL, LISTS, STREAMING, TRIANGLE
from elastic_attention.kernels.reference import attend_reference
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.prefill import attend_triton, launch_prefill
from elastic_attention.kernels.triton.shapes import _HOPPER_PLAIN, TileShape
from elastic_attention.patterns import build_pattern
from oracles import assert_as_exact, attend_naively

pytestmark = pytest.mark.usefixtures("poisoned")
SMALL = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
TILE = TileShape(16, 16, 4, 1)
ROUNDINGS = 4  # weights, their sum and the result are rounded at other places than in the oracle


def make_inputs(device, *, batch=1, num_q_heads=4, num_kv_heads=2, num_queries, num_keys, head_dim=16, dtype=None):
    heads = (num_q_heads, num_queries), (num_kv_heads, num_keys), (num_kv_heads, num_keys)
    # Memory order (B, T, H, D), as models have it.
    return tuple(torch.randn(batch, n, h, head_dim, device=device).to(dtype).transpose(1, 2) for h, n in heads)


def make_modes(rows, device):
    return torch.tensor(rows, dtype=torch.int32, device=device)


def check(results, q, k, v, is_sparse, config, scale=0.25):
    wide = [x.double() for x in (q, k, v)]
    exact = attend_reference(*wide, is_sparse, build_pattern(config), scale)
    low = attend_naively(*(x.cpu() for x in (q, k, v)), is_sparse.cpu(), config, scale)
    out, lse = (x.cpu() for x in results)
    assert lse.dtype == torch.float32 and out.dtype == q.dtype
    assert_as_exact([out], [exact[0].cpu()], [low[0]], roundings=ROUNDINGS)
    if q.dtype == torch.float32:
        assert_as_exact([lse], [exact[1].cpu().double()], [low[1]], roundings=ROUNDINGS)


@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (16, 32)])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (64, 64), (63, 63), (1, 97), (45, 111)])
def test_mixed_modes_at_odd_lengths_and_exact_multiples(device, tile, num_queries, num_keys):
    q, k, v = make_inputs(device, num_queries=num_queries, num_keys=num_keys)
    modes = make_modes([[STREAMING, FULL]], device)
    results = launch_prefill(q, k, v, modes, SMALL, 0.25, None, None, None, TileShape(*tile, 4, 1), False)
    check(results, q, k, v, modes == STREAMING, SMALL)


@pytest.mark.parametrize("block", [16, 24, 32, 64])
@pytest.mark.parametrize("tile", [(16, 16), (64, 32)])
def test_blocks_longer_and_shorter_than_tiles(device, block, tile):
    config = StreamingConfig(num_sink_tokens=block, local_window=block, block_size=block)
    q, k, v = make_inputs(device, num_q_heads=1, num_kv_heads=1, num_queries=100, num_keys=141)
    modes = make_modes([[STREAMING]], device)
    results = launch_prefill(q, k, v, modes, config, 0.25, None, None, None, TileShape(*tile, 4, 1), False)
    check(results, q, k, v, modes == STREAMING, config)


@pytest.mark.parametrize("tile", [None, TILE], ids=["chosen", "square"])
@pytest.mark.parametrize("head_dim", [16, 48, 128, 256])
def test_head_dims_and_dtypes(device, half_dtypes, head_dim, tile):
    modes = make_modes([[STREAMING, FULL]], device)
    scale = head_dim**-0.5
    for dtype in (torch.float32, *half_dtypes):
        q, k, v = make_inputs(
            device, num_q_heads=2, num_kv_heads=2, num_queries=70, num_keys=90, head_dim=head_dim, dtype=dtype
        )
        given = q, k, v, modes, SMALL, scale
        results = launch_prefill(*given, None, None, None, tile, False) if tile else attend_triton(*given)
        check(results, q, k, v, modes == STREAMING, SMALL, scale)


@pytest.mark.parametrize("use_descriptors", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(300, 300), (70, 427), (1, 513)])
def test_the_tile_that_hopper_takes_for_whole_sequences(device, half_dtypes, use_descriptors, num_queries, num_keys):
    if use_descriptors and device.type == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the GPU has no tensor memory accelerator")
    config = StreamingConfig(num_sink_tokens=128, local_window=128, block_size=128)
    modes = make_modes([[STREAMING, FULL]], device)
    for dtype in half_dtypes:
        q, k, v = make_inputs(
            device, num_q_heads=2, num_queries=num_queries, num_keys=num_keys, head_dim=128, dtype=dtype
        )
        given = q, k, v, modes, config, 128**-0.5, None, None, None, _HOPPER_PLAIN[256], use_descriptors
        check(launch_prefill(*given), q, k, v, modes == STREAMING, config, 128**-0.5)


@pytest.mark.parametrize("group_size", [1, 3, 8])
def test_group_sizes_and_routes_of_each_sequence(device, group_size):
    q, k, v = make_inputs(device, batch=2, num_q_heads=2 * group_size, num_queries=50, num_keys=66)
    modes = make_modes([[STREAMING, FULL], [FULL, STREAMING]], device)
    check(attend_triton(q, k, v, modes, SMALL, 0.25), q, k, v, modes == STREAMING, SMALL)


def test_descriptors_strides_and_slices_change_nothing(device):
    q, k, v = (torch.randn(1, 90, heads, 16, device=device).transpose(1, 2) for heads in (4, 2, 2))
    parts = q[:, :, 7:77], k[:, :, :77], v[:, :, :77]
    for x in (q[:, :, :7], q[:, :, 77:], k[:, :, 77:], v[:, :, 77:]):  # of others
        x.fill_(float("nan"))
    modes = make_modes([[STREAMING, FULL]], device)
    rest = modes, SMALL, 0.25, None, None, None, TileShape(16, 16, 4, 1)
    copied = launch_prefill(*(x.contiguous() for x in parts), *rest, False)
    as_bytes = launch_prefill(*parts, modes.to(torch.uint8), *rest[1:], False)
    assert all(torch.equal(a, b) for a, b in zip(as_bytes, copied, strict=True))
    for use_descriptors in (False, True):
        if use_descriptors and device.type == "cuda" and torch.cuda.get_device_capability()[0] < 9:
            continue
        strided = launch_prefill(*parts, *rest, use_descriptors)
        assert all(torch.equal(a, b) for a, b in zip(strided, copied, strict=True))


def make_spans(lengths, query_starts, key_starts, device, *, is_packed):
    numbers = [query_starts, [t for t, _ in lengths], key_starts, [s for _, s in lengths]]
    starts, queries, keys, num_keys = (torch.tensor(x, dtype=torch.int32, device=device) for x in numbers)
    return Spans(
        query_start=starts,
        query_length=queries,
        key_start=keys,
        key_length=num_keys,
        is_packed=is_packed,
        max_query_length=max(t for t, _ in lengths),
    )


@pytest.mark.parametrize("use_descriptors", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_ragged_batches(device, is_packed, use_descriptors):
    """Memory outside of the sequences holds nan; nothing of it may show."""
    if use_descriptors and device.type == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the GPU has no tensor memory accelerator")
    lengths = [(40, 50), (0, 0), (17, 33), (1, 70)]
    if is_packed:
        query_starts, key_starts, shape_q, shape_k = [3, 43, 46, 66], [0, 50, 60, 93], (1, 70), (1, 170)
    else:
        query_starts, key_starts, shape_q, shape_k = [9, 0, 35, 51], [0, 0, 5, 12], (4, 52), (4, 90)
    q, k, v = (
        torch.full((b, heads, n, 16), float("nan"), device=device)
        for heads, (b, n) in ((4, shape_q), (2, shape_k), (2, shape_k))
    )
    modes = make_modes([[STREAMING, FULL], [FULL, FULL], [FULL, STREAMING], [STREAMING, FULL]], device)
    parts = []
    for i, (t, s) in enumerate(lengths):
        element = 0 if is_packed else i
        rows, columns = slice(query_starts[i], query_starts[i] + t), slice(key_starts[i], key_starts[i] + s)
        parts.append((q[element, :, rows], k[element, :, columns], v[element, :, columns]))
        for part in parts[-1]:
            part.normal_()
    spans = make_spans(lengths, query_starts, key_starts, device, is_packed=is_packed)
    out, lse = launch_prefill(q, k, v, modes, SMALL, 0.25, spans, None, None, TILE, use_descriptors)
    is_written = torch.zeros(shape_q, dtype=torch.bool, device=device)
    for i, (t, _) in enumerate(lengths):
        element, rows = 0 if is_packed else i, slice(query_starts[i], query_starts[i] + t)
        is_written[element, rows] = True
        if t:
            results = out[element : element + 1, :, rows], lse[element : element + 1, :, rows]
            check(results, *(x[None] for x in parts[i]), modes[i : i + 1] == STREAMING, SMALL)
    assert bool((out.transpose(1, 2)[~is_written] == 0).all())
    assert bool((lse.transpose(1, 2)[~is_written] == float("-inf")).all())


@pytest.mark.parametrize(
    ("tile", "first_dense", "stop_dense"),
    [((128, 64), 0, 0), ((64, 128), 0, 0), ((128, 64), 150, 170), ((128, 64), 128, 300), ((64, 128), 40, 260)],
)
def test_lists_and_triangle(device, tile, first_dense, stop_dense):
    num_queries, num_keys, block = 200, 300, 128
    q, k, v = make_inputs(device, num_q_heads=3, num_kv_heads=3, num_queries=num_queries, num_keys=num_keys)
    modes = make_modes([[LISTS, TRIANGLE, STREAMING]], device)
    # Query blocks 0, 1 and 2; the last one passes over key block 1.
    blocks = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=device)
    lists = pack_mask(blocks.expand(1, 3, 3, 3), torch.zeros(1, dtype=torch.long, device=device), block)
    dense_rows = torch.tensor([[first_dense, stop_dense]], dtype=torch.int32, device=device)
    given = dense_rows if stop_dense else None
    results = launch_prefill(q, k, v, modes, SMALL, 0.25, None, lists, given, TileShape(*tile, 4, 1), False)

    rows = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    columns = torch.arange(num_keys, device=device)[None]
    is_dense = (rows >= first_dense) & (rows < stop_dense)
    window = build_pattern(SMALL).is_visible(rows, columns)
    visible = torch.stack([blocks[rows // block, columns // block] | is_dense, window | is_dense, window])
    visible &= columns <= rows
    scores = (q.double() @ k.double().transpose(-1, -2) * 0.25).masked_fill(~visible, float("-inf"))
    torch.testing.assert_close(results[0].double(), scores.softmax(-1) @ v.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1].double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [16, 32, 64])
def test_lists_of_short_blocks(device, half_dtypes, block):
    """Tiles are no longer than the blocks of the lists."""
    num_queries, num_keys, heads = 70, 150, 2
    first = (num_keys - num_queries) // block
    rows = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    columns = torch.arange(num_keys, device=device)[None]
    places = torch.arange((num_keys - 1) // block + 1, device=device)
    last = torch.arange(first, len(places), device=device)[:, None]
    blocks = ((torch.rand(1, heads, len(last), len(places), device=device) < 0.4) | (places == 0)) & (places <= last)
    lists = pack_mask(blocks | (places == last), torch.full((1,), first, device=device), block)
    shown = (blocks | (places == last))[..., (rows // block - first)[:, 0], :][..., (columns // block)[0]]
    modes = make_modes([[LISTS] * heads], device)
    for dtype in (torch.float32, *half_dtypes):
        sizes = {"num_q_heads": heads, "num_kv_heads": heads, "num_queries": num_queries, "num_keys": num_keys}
        q, k, v = make_inputs(device, **sizes, head_dim=64, dtype=dtype)
        out, lse = attend_triton(q, k, v, modes, SMALL, 0.125, lists=lists)
        scores = (q.double() @ k.double().mT * 0.125).masked_fill(~(shown & (columns <= rows)), float("-inf"))
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(out.double(), scores.softmax(-1) @ v.double(), **tolerance)
        torch.testing.assert_close(lse.double(), scores.logsumexp(-1), **tolerance)


def test_gradients(device):
    q, k, v = (x.requires_grad_() for x in make_inputs(device, num_queries=60, num_keys=90))
    grad = torch.randn(q.shape, device=device)
    modes = make_modes([[STREAMING, FULL]], device)
    out, lse = attend_triton(q, k, v, modes, SMALL, 0.25)
    assert not lse.requires_grad
    found = torch.autograd.grad(out, (q, k, v), grad)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact, _ = attend_reference(*wide, modes == STREAMING, build_pattern(SMALL), 0.25)
    wanted = torch.autograd.grad(exact, wide, grad.double())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_what_has_no_gradient_says_so(device):
    q, k, v = (x.requires_grad_() for x in make_inputs(device, num_queries=16, num_keys=16))
    dense_rows = torch.tensor([[0, 3]], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="no gradient"):
        attend_triton(q, k, v, make_modes([[TRIANGLE, FULL]], device), SMALL, 0.25, dense_rows=dense_rows)
    with pytest.raises(ValueError, match="scale=-1"):
        attend_triton(q, k, v, make_modes([[FULL, FULL]], device), SMALL, -1.0)


def test_no_queries(device):
    q, k, v = make_inputs(device, num_queries=0, num_keys=5)
    out, lse = attend_triton(q, k, v, make_modes([[FULL, STREAMING]], device), SMALL, 0.25)
    assert out.shape == (1, 4, 0, 16) and lse.shape == (1, 4, 0)
