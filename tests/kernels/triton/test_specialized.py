"""Whole sequences by warps with roles, against the oracle; only the compiler for Hopper GPUs splits the work."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.kernels.modes import FULL, STREAMING
from elastic_attention.kernels.reference import attend_reference
from elastic_attention.kernels.triton import specialized
from elastic_attention.kernels.triton.prefill import attend_triton
from elastic_attention.patterns import build_pattern
from oracles import assert_as_exact, attend_naively

pytestmark = pytest.mark.usefixtures("poisoned")
ROUNDINGS = 4  # weights, their sum and the result are rounded at other places than in the oracle


@pytest.fixture
def rows(device):
    """Rows of a tile: few where the interpreter runs."""
    return 16 if device.type == "cpu" else 128


def config_of(rows):
    return StreamingConfig(num_sink_tokens=rows, local_window=2 * rows, block_size=rows)


def check(results, q, k, v, is_sparse, config, scale):
    exact = attend_reference(*(x.double() for x in (q, k, v)), is_sparse, build_pattern(config), scale)
    low = attend_naively(*(x.cpu() for x in (q, k, v)), is_sparse.cpu(), config, scale)
    out, lse = (x.cpu() for x in results)
    assert lse.dtype == torch.float32 and out.dtype == q.dtype
    assert_as_exact([out], [exact[0].cpu()], [low[0]], roundings=ROUNDINGS)
    assert (lse - exact[1].cpu()).abs().max() < 1e-4


def lay_out(x, layout):
    """x (B, H, T, D) with the memory order that `layout` names."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if layout == "columns" else x.contiguous()


@pytest.mark.parametrize("layout", ["columns", "rows"])
@pytest.mark.parametrize(
    ("batch", "num_queries", "num_keys"), [(1, 1, 1), (1, 8, 8), (1, 7, 15.5), (3, 6, 6), (2, 1.5, 5), (1, 0.25, 9)]
)
def test_lengths_chunks_and_routes_of_each_sequence(device, rows, layout, batch, num_queries, num_keys):
    """Lengths in tiles, so that odd ones, exact multiples and chunks occur; more tiles than programs."""
    num_queries, num_keys = int(num_queries * rows), int(num_keys * rows)
    make = torch.Generator(device).manual_seed(0)
    q, k, v = (
        lay_out(torch.randn(batch, heads, n, 64, device=device, dtype=torch.float16, generator=make), layout)
        for heads, n in ((6, num_queries), (2, num_keys), (2, num_keys))
    )
    if not all(specialized.ends_in_zeros(x, rows) for x in (k, v)):
        pytest.skip("the last tile reads memory of others")
    modes = torch.tensor([[STREAMING, FULL], [FULL, STREAMING], [STREAMING, STREAMING]][:batch], device=device)
    results = specialized.launch_specialized(q, k, v, modes, config_of(rows), 0.125, 5, rows=rows)
    check(results, q, k, v, modes == STREAMING, config_of(rows), 0.125)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_turns_reach_every_tile_once(device, rows, is_streaming):
    """One mode for all heads, fewer tiles than programs, and a last round that is not full: no row is left out."""
    q, k, v = (torch.randn(1, 4 * rows, 3, 64, device=device, dtype=torch.float16).transpose(1, 2) for _ in "qkv")
    modes = torch.full((1, 3), STREAMING if is_streaming else FULL, device=device)
    for num_programs in (1, 7, 99):
        results = specialized.launch_specialized(q, k, v, modes, config_of(rows), 0.125, num_programs, rows=rows)
        check(results, q, k, v, modes == STREAMING, config_of(rows), 0.125)


def test_views_of_a_fused_projection(device, rows):
    fused = torch.randn(1, 3 * rows, 8, 64, device=device, dtype=torch.float16)
    q, k, v = (x.transpose(1, 2) for x in fused.split([4, 2, 2], 2))
    modes = torch.tensor([[FULL, STREAMING]], device=device)
    results = specialized.launch_specialized(q, k, v, modes, config_of(rows), 0.125, 3, rows=rows)
    check(results, q, k, v, modes == STREAMING, config_of(rows), 0.125)


def test_what_lies_behind_the_last_key_decides():
    """A tile that runs over the end of one element would read the next: nan there would spread."""
    whole = torch.zeros(2, 256, 2, 64).transpose(1, 2)
    assert specialized.ends_in_zeros(whole, 128)
    assert not specialized.ends_in_zeros(whole[:, :, :200], 128)
    assert specialized.ends_in_zeros(whole[:1, :, :200], 128)
    assert not specialized.ends_in_zeros(torch.zeros(1, 2, 200, 64), 128)


def test_the_shipped_path_takes_it_on_hopper(device):
    if not specialized.takes_roles(device):
        pytest.skip("Triton gives no roles to warps here")
    config = config_of(128)
    q, k, v = (torch.randn(1, 700, h, 128, device=device, dtype=torch.bfloat16).transpose(1, 2) for h in (4, 2, 2))
    assert specialized.can_specialize(q, k, v, config)
    modes = torch.tensor([[FULL, STREAMING]], device=device, dtype=torch.int32)
    for _ in range(20):
        check(attend_triton(q, k, v, modes, config, 0.1), q, k, v, modes == STREAMING, config, 0.1)
