"""Block lists from the GPU kernels against the same lists in float64, for every layout of a batch."""

import pytest
import torch

from elastic_attention.config import XAttentionConfig
from elastic_attention.kernels.block_lists import find_first_blocks
from elastic_attention.kernels.modes import FULL, LISTS, STREAMING
from elastic_attention.kernels.spans import Spans
from elastic_attention.kernels.triton.xattention import ScoreTile, build_block_lists
from elastic_attention.kernels.xattention import score_blocks, select_blocks
from xattention_oracle import assert_chosen, bound_mass_error

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # the logarithm of no mass

TILE = ScoreTile(rows=16, columns=16, features=16, group=2, warps=4, stages=1)
SIZES = dict(block_size=16, stride=4)
CONFIG = XAttentionConfig(threshold=0.7, **SIZES)


def make(batch, queries, keys, *, heads=4, kv_heads=2, width=16, dtype=torch.float32, device="cpu"):
    """Uneven scores, in the memory order (B, T, H, D) that models have."""
    generator = torch.Generator().manual_seed(queries + 7 * keys)
    q = torch.randn(batch, queries, heads, width, generator=generator) * 2
    k = torch.randn(batch, keys, kv_heads, width, generator=generator) * 2
    return (x.to(device, dtype).transpose(1, 2) for x in (q, k))


def assert_lists(lists, q, k, modes, config, *, dense=None, spans=None):
    """Every sequence of the batch chose as float64 would, up to what rounding can change."""
    num_blocks = -(-k.shape[2] // config.block_size)
    first = find_first_blocks(len(modes), q.shape[2], k.shape[2], config.block_size, spans).to(q.device)
    masks, group, num_equal = lists.to_mask(first, num_blocks), q.shape[1] // k.shape[1], []
    for row in range(len(modes)):
        x, y = cut_sequence(q, k, row, spans)
        rows = None if dense is None else dense[row : row + 1]
        mass, voters = score_blocks(x, y, config, 0.25, dense_rows=rows, dtype=torch.float64)
        wanted = select_blocks(mass, voters, config)[0]
        found = masks[row, :, : wanted.shape[1], : wanted.shape[2]]
        is_listed = (modes[row] == LISTS).repeat_interleave(group)
        assert not lists.counts[row][~is_listed].any()  # nothing was spent on them
        assert int(masks[row].sum()) == int(found[is_listed].sum())  # no row behind the sequence
        votes = voters[0]
        assert torch.equal(found[is_listed][:, ~votes], wanted[is_listed][:, ~votes])
        for found_row, mass_row in zip(found[is_listed], mass[0][is_listed], strict=True):
            for m in votes.nonzero()[:, 0].tolist():
                num = wanted.shape[2] - wanted.shape[1] + m + 1
                tolerance = bound_mass_error(x, y, config, 0.25)
                assert_chosen(found_row[m : m + 1, :num], mass_row[m : m + 1, :num], config, tolerance)
        num_equal.append((found == wanted)[is_listed].all(-1).float().mean().item())
    assert min(num_equal) > 0.9  # rounding decides few rows, if any


def cut_sequence(q, k, row, spans):
    if spans is None:
        return q[row : row + 1], k[row : row + 1]
    parts = (spans.query_start, spans.query_length, spans.key_start, spans.key_length)
    start, length, key_start, key_length = (int(part[row]) for part in parts)
    element = 0 if spans.is_packed else row
    return (
        q[element : element + 1, :, start : start + length],
        k[element : element + 1, :, key_start : key_start + key_length],
    )


@pytest.mark.parametrize(
    "queries, keys, choice",
    [(64, 64, {}), (75, 75, {}), (40, 104, {}), (37, 110, {}), (1, 33, {}), (3, 3, {}), (75, 75, {"density": 0.4})],
)
def test_plain_batches(device, queries, keys, choice):
    config = XAttentionConfig(**{"threshold": 0.7, **SIZES, **choice})
    q, k = make(2, queries, keys, device=device)
    modes = torch.tensor([[LISTS, LISTS], [FULL, LISTS]], dtype=torch.int32, device=device)
    q[1, :2] = float("nan")  # heads in another mode are not even looked at
    lists = build_block_lists(q, k, modes, config, 0.25, tile=TILE)
    assert_lists(lists, q.nan_to_num(), k, modes, config)


@pytest.mark.parametrize("dtype, width", [(torch.float32, 48), (torch.float16, 32), (torch.bfloat16, 64)])
def test_dtypes_and_widths(device, dtype, width):
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter multiplies bfloat16 as integers")
    q, k = make(1, 52, 69, width=width, dtype=dtype, device=device)
    modes = torch.full((1, 2), LISTS, dtype=torch.int32, device=device)
    lists = build_block_lists(q / 2, k / 2, modes, CONFIG, 0.25, tile=TILE)
    assert_lists(lists, q / 2, k / 2, modes, CONFIG)


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
def test_batches_of_sequences(device, is_packed):
    lengths = [(33, 33), (20, 61), (7, 16), (48, 80)]
    queries, keys = (torch.tensor(x, dtype=torch.int32, device=device) for x in zip(*lengths, strict=True))
    starts = [x.cumsum(0).int() - x if is_packed else x.max() - x for x in (queries, keys)]
    spans = Spans(
        query_start=starts[0],
        query_length=queries,
        key_start=starts[1],
        key_length=keys,
        is_packed=is_packed,
        max_query_length=48,
    )
    sizes = (1, int(queries.sum()), int(keys.sum())) if is_packed else (4, 48, 80)
    q, k = make(*sizes, device=device)
    modes = torch.full((4, 2), LISTS, dtype=torch.int32, device=device)
    modes[2, 0] = STREAMING
    dense = torch.tensor([[30, 33], [0, 0], [8, 16], [70, 2**31 - 1]], dtype=torch.int32, device=device)
    for rows in (None, dense):
        lists = build_block_lists(q, k, modes, CONFIG, 0.25, spans=spans, dense_rows=rows, tile=TILE)
        assert_lists(lists, q, k, modes, CONFIG, spans=spans, dense=rows)


@pytest.mark.parametrize(
    "rows", [(40, 2**31 - 1), (49, 2**31 - 1), (64, 64), (0, 80), (18, 61), (65, 80), (64, 70), (16, 32)]
)
def test_responses_neither_vote_nor_show(device, rows):
    q, k = make(1, 64, 80, device=device)
    k[:, :, rows[0] : rows[0] + 4] *= 20  # a key that a prompt should not see would draw all of its mass
    modes = torch.full((1, 2), LISTS, dtype=torch.int32, device=device)
    dense = torch.tensor([rows], dtype=torch.int32, device=device)
    for tile in (TILE, ScoreTile(rows=16, columns=16, features=16, is_described=True)):
        lists = build_block_lists(q, k, modes, CONFIG, 0.25, dense_rows=dense, tile=tile)
        assert_lists(lists, q, k, modes, CONFIG, dense=dense)


@pytest.mark.parametrize("queries, keys", [(64, 64), (24, 88), (61, 93)])
def test_descriptors_read_the_same(device, queries, keys):
    q, k = make(2, queries, keys, device=device)
    modes = torch.full((2, 2), LISTS, dtype=torch.int32, device=device)
    lists = build_block_lists(
        q, k, modes, CONFIG, 0.25, tile=ScoreTile(rows=16, columns=16, features=16, is_described=True)
    )
    assert_lists(lists, q, k, modes, CONFIG)


def test_a_small_scratch_changes_nothing(device):
    config = XAttentionConfig(block_size=4, stride=4)
    q, k = make(1, 76, 84, heads=2, kv_heads=1, device=device)
    modes = torch.full((1, 1), LISTS, dtype=torch.int32, device=device)
    first = torch.tensor([2], device=device)
    whole, cut = (
        build_block_lists(q, k, modes, config, 0.25, tile=TILE, scratch_bytes=size).to_mask(first, 21)
        for size in (1 << 26, 1)
    )
    assert torch.equal(whole, cut)


def test_equal_masses_are_taken_by_index(device):
    """Queries of zeros weigh all strided keys alike, so whole blocks tie exactly."""
    q, k = make(1, 96, 96, device=device)
    modes = torch.full((1, 2), LISTS, dtype=torch.int32, device=device)
    lists = build_block_lists(torch.zeros_like(q), k, modes, XAttentionConfig(threshold=0.5, **SIZES), 0.25, tile=TILE)
    # Row m has m full blocks and half a one, all of one density: block 0, the diagonal, then from the left.
    wanted = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4], [0, 1, 2, 5]]
    mask = lists.to_mask(torch.zeros(1, dtype=torch.long, device=device), 6)[0, 0]
    assert [row.nonzero()[:, 0].tolist() for row in mask] == wanted


def test_no_queries(device):
    q, k = make(2, 0, 32, device=device)
    lists = build_block_lists(q, k, torch.full((2, 2), LISTS, device=device), CONFIG, 0.25, tile=TILE)
    assert lists.counts.numel() == 0


def test_hopper_code_spills_nothing(compile_for_hopper):
    """Tensor cores in use, no stack, and the shared memory of one multiprocessor."""
    kernels = compile_for_hopper("compile_lists.py")
    assert {kernel["name"] for kernel in kernels} == {"score_strides", "select_blocks"} and len(kernels) >= 10
    for kernel in kernels:
        assert kernel["stack"] == 0 and kernel["local"] == 0, kernel
        assert kernel["shared"] <= 227 * 1024, kernel
        assert bool(kernel["wgmma"]) == (kernel["name"] == "score_strides" and kernel["case"] != "float32"), kernel
