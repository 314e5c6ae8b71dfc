"""Decode over pages against float64, and the page kernels against their plain twins."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elastic_attention import StreamingConfig
from elastic_attention.kernels.modes import FULL, STREAMING
from elastic_attention.kernels.triton.decode import DecodeShape, DecodeWorkspace, decode_paged, launch_decode
from elastic_attention.kernels.triton.paging import append_token, compact_rows
from elastic_attention.paging import PagedCache, group, plain, store
from elastic_attention.paging.verbs import kernel_verbs
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes
from oracles import is_visible

SMALL = StreamingConfig(num_sink_tokens=16, local_window=48, block_size=16)
ODD = StreamingConfig(num_sink_tokens=24, local_window=72, block_size=24)
FIXTURE = [HealthCheck.function_scoped_fixture]  # the device never changes
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Pages:
    """Pages in random order that hold what the block rule keeps, and poison everywhere else.

    A row's slots are worked out here from the words of the rule: sink tokens stay, position p takes the slot that
    p - window had.
    """

    def __init__(self, lengths, modes, *, config, page_size, width, heads, dtype, device, poison):
        generator = torch.Generator().manual_seed(sum(lengths) + width)
        self.lengths, self.modes, self.config = lengths, modes, config
        slots = [[self.slots_of(n, mode) for mode in row] for n, row in zip(lengths, modes, strict=True)]
        needed = [[-(-(max(s.values(), default=0) + 1) // page_size) for s in row] for row in slots]
        num_pages = sum(map(sum, needed)) + 2
        order = torch.randperm(num_pages, generator=generator).tolist()
        keys, values = (torch.full((num_pages, page_size, width), poison) for _ in range(2))
        num_rows = len(lengths) * len(modes[0])
        self.table = torch.full((num_rows, max(map(max, needed)) + 1), num_pages - 1, dtype=torch.int32)
        self.q = torch.randn(len(lengths), heads, 1, width, generator=generator).to(dtype)
        self.exact = torch.zeros(self.q.shape, dtype=torch.float64)
        group_size = heads // len(modes[0])
        for row in range(num_rows):
            b, g = divmod(row, len(modes[0]))
            held = slots[b][g]
            k, v = torch.randn(2, len(held), width, generator=generator).to(dtype)
            pages = [order.pop() for _ in range(needed[b][g])]
            self.table[row, : len(pages)] = torch.tensor(pages)
            for i, slot in enumerate(held.values()):
                keys[pages[slot // page_size], slot % page_size] = k[i].float()
                values[pages[slot // page_size], slot % page_size] = v[i].float()
            if held:
                queries = self.q[b, g * group_size : (g + 1) * group_size, 0].double()
                weights = (queries @ k.double().T * width**-0.5).softmax(-1)
                self.exact[b, g * group_size : (g + 1) * group_size, 0] = weights @ v.double()
        self.keys, self.values = (x.to(device, dtype) for x in (keys, values))
        self.table, self.q, self.exact = (x.to(device) for x in (self.table, self.q, self.exact))
        self.device_lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.device_modes = torch.tensor(modes, dtype=torch.int32, device=device)

    def slots_of(self, num_tokens, mode):
        """Position -> slot of what the newest token reads."""
        sink, window = self.config.num_sink_tokens, self.config.local_window
        if mode == FULL:
            return {p: p for p in range(num_tokens)}
        seen = [p for p in range(num_tokens) if is_visible(self.config, num_tokens - 1, p)]
        return {p: p if p < sink else sink + (p - sink) % window for p in seen}

    @property
    def state(self):
        return self.keys, self.values, self.table, self.device_lengths, self.device_modes, self.config


def make_pages(device, lengths, modes, *, heads=None, dtype=torch.float32, **sizes):
    # The copy engine loads slots that hold nothing, so there they must be finite.
    poison = 1e4 if device.type == "cuda" and dtype.itemsize == 2 else float("nan")
    sizes = {"config": SMALL, "page_size": 32, "width": 16, "heads": heads or 2 * len(modes[0])} | sizes
    return Pages(lengths, modes, dtype=dtype, device=device, poison=poison, **sizes)


def assert_exact(pages, out, dtype=torch.float32):
    assert out.shape == pages.q.shape and out.dtype == dtype
    error = (out.double() - pages.exact).norm() / pages.exact.norm()
    assert error < TOLERANCE[dtype], float(error)


modes_of_rows = st.lists(st.sampled_from([FULL, STREAMING]), min_size=2, max_size=2)


CUTS = [
    (SMALL, DecodeShape(tile=16, chunk=2, row_cost=0)),
    (SMALL, DecodeShape(tile=32, chunk=4, row_cost=3)),
    (ODD, DecodeShape(tile=16, chunk=16, row_cost=1)),
    (ODD, DecodeShape(tile=32, chunk=2, row_cost=4)),
]


@settings(max_examples=20, suppress_health_check=FIXTURE)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    data=st.data(),
    cut=st.sampled_from(CUTS),
    num_programs=st.integers(1, 20),
)
def test_every_length_route_and_cut(device, lengths, data, cut, num_programs):
    config, shape = cut
    modes = [data.draw(modes_of_rows) for _ in lengths]
    pages = make_pages(device, lengths, modes, config=config)
    workspace = DecodeWorkspace(len(lengths), 4, 2, 16, pages.q.device, num_programs)
    for _ in range(2):  # the counters are ready for the next launch
        out = launch_decode(pages.q, *pages.state, 16**-0.5, workspace, shape)
        assert_exact(pages, out)
        assert not workspace.arrived.any()


@pytest.mark.parametrize("num_tokens", range(60, 84))
def test_each_step_of_a_block(device, num_tokens):
    """Around the first turn of the ring, where the rest of the newest block is stale."""
    pages = make_pages(device, [num_tokens], [[STREAMING, FULL]])
    assert_exact(pages, decode_paged(pages.q, *pages.state, 0.25))


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("width", [16, 48, 64, 256])
def test_every_group_size_and_width(device, heads, width):
    pages = make_pages(device, [70, 33], [[STREAMING], [FULL]], heads=heads, width=width)
    assert_exact(pages, decode_paged(pages.q, *pages.state, width**-0.5))


def test_narrow_types(device, half_dtypes):
    for dtype in half_dtypes:
        pages = make_pages(device, [100, 40], [[STREAMING, FULL], [FULL, STREAMING]], dtype=dtype, width=32)
        assert_exact(pages, decode_paged(pages.q, *pages.state, 32**-0.5), dtype)


def test_a_sequence_without_tokens_gives_zeros(device):
    pages = make_pages(device, [0, 20], [[FULL, STREAMING]] * 2)
    out = decode_paged(pages.q, *pages.state, 0.25)
    assert not out[0].any()
    assert_exact(pages, out)


def test_strided_queries(device):
    pages = make_pages(device, [50], [[FULL, STREAMING]])
    q = torch.randn(1, 1, 4, 48, device=device).transpose(1, 2)[..., :16]
    q.copy_(pages.q)
    assert_exact(pages, decode_paged(q, *pages.state, 0.25))


def test_equal_rows_are_shared_by_many_programs(device):
    """More parts than a chunk, more programs than tiles, one tile a program."""
    pages = make_pages(device, [900], [[FULL, FULL]])
    for num_programs in (3, 57, 200):
        workspace = DecodeWorkspace(1, 4, 2, 16, pages.q.device, num_programs)
        out = launch_decode(pages.q, *pages.state, 0.25, workspace, DecodeShape(tile=16, chunk=8))
        assert_exact(pages, out)


# Writing ----------------------------------------------------------------------------------------------------------


def make_pool(device, num_rows, pages_of_row, *, page_size=16, width=16):
    keys, values = torch.zeros(2, num_rows * pages_of_row, page_size, width, device=device)
    order = torch.randperm(num_rows * pages_of_row).int()
    return keys, values, order.view(num_rows, pages_of_row).to(device)


@settings(max_examples=20, suppress_health_check=FIXTURE)
@given(
    before=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    num_new=st.integers(1, 100),
    data=st.data(),
    config=st.sampled_from([SMALL, ODD]),
)
def test_writing_prompts_and_tokens(device, before, num_new, data, config):
    """Both kernels leave the same pages as their plain twins."""
    batch, heads, width = len(before), 3, 48
    modes = torch.tensor(
        [[data.draw(st.sampled_from([FULL, STREAMING])) for _ in range(heads)] for _ in before],
        dtype=torch.int32,
        device=device,
    )
    real = torch.rand(batch, num_new) < data.draw(st.sampled_from([0.5, 1.0]))
    start = torch.tensor(before, dtype=torch.int32)
    positions = (start[:, None] + real.cumsum(1) - 1).int().masked_fill(~real, -1).to(device)
    lengths = (start + real.sum(1).int()).to(device)
    # The memory order of a model, and a slice of something wider.
    states = torch.randn(2, batch, num_new + 1, heads, 64, device=device).transpose(2, 3)[..., :width]
    keys, values, table = make_pool(device, batch * heads, 12, width=width)
    found, wanted = [keys, values], [keys.clone(), values.clone()]
    ends, plain_ends = lengths.clone(), lengths.clone()
    prompt, token = states[..., :num_new, :], states[..., num_new:, :]
    compact_rows(*prompt, positions, *found, table, ends, modes, config)
    plain.compact_rows(*prompt, positions, *wanted, table, plain_ends, modes, config)
    append_token(*token, *found, table, ends, modes, config)
    plain.append_token(*token, *wanted, table, plain_ends, modes, config)
    assert torch.equal(ends, lengths + 1) and torch.equal(plain_ends, lengths + 1)
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x, y)


def test_the_store_runs_on_the_kernels(device, monkeypatch):
    """A prompt with padding, a hundred steps, a crop and beams: pages, kernels and all, against plain PyTorch."""
    pattern, heads, width = build_pattern(SMALL), 2, 16
    stores = [PagedCache(pattern), PagedCache(pattern)]

    def cache_device(cache):
        return "cpu" if cache is stores[0] else device

    routes = HeadRoutes(torch.tensor([[True, False], [False, True]]))
    real = torch.ones(2, 90, dtype=torch.bool)
    real[0, :7] = False

    def run(index, verb):
        with monkeypatch.context() as patch:
            for module in (store, group) if index else ():
                patch.setattr(module, "verbs_for", lambda _: kernel_verbs())
            return verb(stores[index])

    def step(keys, values, mask=None):
        def write(cache):
            place = cache_device(cache)
            cache.append(keys.to(place), values.to(place), None if mask is None else mask.to(place))
            cache.assign(routes if mask is not None else cache.routes)
            cache.evict()

        for index in range(2):
            run(index, write)

    def compare():
        q = torch.randn(len(stores[0].lengths), 4, 1, width)
        wanted, found = (run(i, lambda s, p=p: s.attend_token(q.to(p)).cpu()) for i, p in enumerate(("cpu", device)))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    step(*torch.randn(2, 2, heads, 90, width), real)
    for _ in range(20):
        step(*torch.randn(2, 2, heads, 1, width))
        compare()
    for i in range(2):
        run(i, lambda s: s.select([1, 0, 1]))
    step(*torch.randn(2, 3, heads, 1, width))
    compare()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_graph_serves_every_length_and_route():
    """Replayed while lengths and routes change in device memory; equal to eager bit for bit."""
    pages = make_pages(
        torch.device("cuda"), [900, 900], [[FULL, FULL]] * 2, dtype=torch.bfloat16, width=128, page_size=64
    )
    workspace = DecodeWorkspace.for_queries(pages.q, 2, 64)
    graph = torch.cuda.CUDAGraph()
    decode_paged(pages.q, *pages.state, 0.1, workspace=workspace)
    with torch.cuda.graph(graph):
        out = decode_paged(pages.q, *pages.state, 0.1, workspace=workspace)
    for lengths, modes in (([900, 1], [[0, 1], [1, 0]]), ([65, 64], [[1, 1], [1, 1]]), ([17, 800], [[0, 0], [0, 1]])):
        pages.device_lengths.copy_(torch.tensor(lengths))
        pages.device_modes.copy_(torch.tensor(modes))
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, decode_paged(pages.q, *pages.state, 0.1, workspace=workspace))


def test_fits_the_registers_of_sm_90(compile_for_hopper):
    """Nothing is spilled."""
    found = compile_for_hopper("compile_decode.py")
    assert {kernel["name"] for kernel in found} == {"_decode", "_append", "_compact"}
    for kernel in found:
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert kernel["registers"] <= 255 and kernel["shared"] <= 227 * 1024, kernel
