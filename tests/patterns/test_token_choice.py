"""MoBA and InfLLM-V2 against their papers' formulas, written out query by query, at the papers' constants and small."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import BackendUnavailable, StreamingConfig, blended_attention, hybrid_attention
from elastic_attention.kernels.backends import log_choice
from elastic_attention.patterns import InfllmConfig, MobaConfig, build_pattern
from token_choice_oracle import read_keys

MOBA = MobaConfig(block_size=8, num_blocks=3)
INFLLM = InfllmConfig(
    block_size=8, local_window=16, num_blocks=3, pooled_tokens=4, pooling_stride=2, dense_tokens=24, num_sink_blocks=1
)
SMALL = [MOBA, INFLLM]


def make_qkv(num_tokens, heads=4, kv_heads=2, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, num_tokens, width), (kv_heads, num_tokens, width), (kv_heads, num_tokens, width)
    return [2 * torch.randn(*shape, generator=generator) for shape in shapes]


def assert_rows(config, q, k, v, rows, out):
    for head, t in rows:
        keys = sorted(read_keys(config, q, k, head, t))
        kv = head * len(k) // len(q)
        weights = (q[head, t].double() @ k[kv, keys].double().T / q.shape[2] ** 0.5).softmax(0)
        torch.testing.assert_close(out[head, t].double(), weights @ v[kv, keys].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [MobaConfig(), InfllmConfig()], ids=["moba", "infllm"])
def test_the_papers_constants(config):
    """Constants: MoBA blocks of 1,024, k = 8; InfLLM-V2 blocks of 64, window 2,048, 64 blocks, dense to 8,192."""
    num_tokens = 9400
    q, k, v = make_qkv(num_tokens, heads=2, kv_heads=1, width=8)
    last = q[:, -3:]  # the last rows are the ones that leave something out
    sparse = torch.ones(1, 1, dtype=torch.bool)
    out = hybrid_attention(last[None], k[None], v[None], sparse, pattern=config)[0]
    shown = build_pattern(config).show_keys(last, k, num_tokens, 8**-0.5)
    for row in range(3):
        t = num_tokens - 3 + row
        for head in range(2):
            keys = read_keys(config, torch.nn.functional.pad(last, (0, 0, num_tokens - 3, 0)), k, head, t)
            assert set(shown[head, row].nonzero()[:, 0].tolist()) == keys and len(keys) < t
            weights = (last[head, row].double() @ k[0, sorted(keys)].double().T / 8**0.5).softmax(0)
            wanted = weights @ v[0, sorted(keys)].double()
            torch.testing.assert_close(out[head, row].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", SMALL, ids=["moba", "infllm"])
@pytest.mark.parametrize("num_tokens", [25, 64, 67, 120])
def test_every_query_reads_what_the_formula_says(config, num_tokens):
    q, k, v = make_qkv(num_tokens)
    shown = build_pattern(config).show_keys(q, k, num_tokens, q.shape[2] ** -0.5)
    for head in range(4):
        for t in range(num_tokens):
            if config is INFLLM and t + 1 < config.pooled_tokens:
                continue  # no pooled key yet; everything is local
            assert set(shown[head, t].nonzero()[:, 0].tolist()) == read_keys(config, q, k, head, t), (head, t)
    sparse = torch.ones(1, 2, dtype=torch.bool)
    for backend in ("cpu", "reference"):
        out = hybrid_attention(q[None], k[None], v[None], sparse, pattern=config, backend=backend)[0]
        assert_rows(config, q, k, v, [(h, t) for h in range(4) for t in range(4, num_tokens, 7)], out)


@given(
    config=st.sampled_from([*SMALL, dataclasses.replace(INFLLM, dense_tokens=90)]),
    start=st.integers(0, 150),
    length=st.integers(0, 60),
)
@settings(max_examples=40)
def test_pair_counts(config, start, length):
    pattern, stop = build_pattern(config), start + length
    q, k, _ = make_qkv(max(stop, 1))
    shown = pattern.show_keys(q, k, stop, 0.25)
    assert pattern.count_pairs(start, stop) == int(shown[0, start:stop].sum())
    assert pattern.count_held(stop) == stop and pattern.count_evicted(stop) == 0


@pytest.mark.parametrize("config", SMALL, ids=["moba", "infllm"])
def test_short_sequences_are_dense(config, monkeypatch):
    pattern = build_pattern(config)
    monkeypatch.setattr(type(pattern), "show_keys", None)  # dense attention reads them, no mask hides anything
    q, k, v = (x[None] for x in make_qkv(pattern.dense_tokens))
    sparse = torch.ones(1, 2, dtype=torch.bool)
    dense = hybrid_attention(q, k, v, ~sparse, pattern=StreamingConfig())
    torch.testing.assert_close(hybrid_attention(q, k, v, sparse, pattern=config), dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", SMALL, ids=["moba", "infllm"])
def test_padding_routes_and_responses(config):
    """Each sequence alone, full heads beside sparse ones, rows behind the prompt dense, one chunk after the other."""
    q, k, v = (torch.stack(x) for x in zip(*(make_qkv(100, seed=s) for s in range(3)), strict=True))
    routes, padding = torch.tensor([[True, False], [False, True], [True, True]]), torch.tensor([0, 13, 40])
    ends = torch.tensor([90, 87, 50])
    options = dict(pattern=config, prompt_lengths=ends)
    out = hybrid_attention(q, k, v, routes, left_padding=padding, **options)
    dense = hybrid_attention(q, k, v, torch.zeros_like(routes), left_padding=padding, pattern=StreamingConfig())
    for b, pad in enumerate(padding.tolist()):
        parts = [x[b : b + 1, :, pad:] for x in (q, k, v)]
        alone = hybrid_attention(*parts, routes[b : b + 1], pattern=config, prompt_lengths=ends[b : b + 1])
        torch.testing.assert_close(out[b, :, pad:], alone[0], rtol=1e-5, atol=1e-6)
        same = (out[b] - dense[b]).abs().amax(2) < 1e-4
        full = ~routes[b].repeat_interleave(2)
        assert same[full].all() and same[:, pad + int(ends[b]) :].all() and not same[~full].all()
    whole = hybrid_attention(q, k, v, routes, pattern=config)
    chunk = hybrid_attention(q[:, :, 70:], k, v, routes, pattern=config)
    torch.testing.assert_close(chunk, whole[:, :, 70:], rtol=1e-5, atol=1e-6)


def test_routes_can_be_trained_beside_them():
    q, k, v = (x[None] for x in make_qkv(80))
    route = torch.tensor([[0.25, 1.0]], requires_grad=True)
    out = blended_attention(q, k, v, route, pattern=MOBA)
    assert torch.autograd.grad(out.square().sum(), route)[0].abs().min() > 0


def test_kernels_of_a_gpu_are_refused():
    q, k, v = (x[None] for x in make_qkv(64))
    with pytest.raises(BackendUnavailable, match="'triton'.*(infllm|GPU)"):
        config = InfllmConfig(block_size=16, local_window=32, num_blocks=1)
        hybrid_attention(q, k, v, torch.ones(1, 2, dtype=torch.bool), pattern=config, backend="triton")


def test_an_unknown_backend_is_refused_and_auto_says_what_it_takes(caplog):
    q, k, v = (x[None] for x in make_qkv(64))
    routes = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(BackendUnavailable, match="'flash' does not exist"):
        hybrid_attention(q, k, v, routes, pattern=MOBA, backend="flash")
    log_choice.cache_clear()
    with caplog.at_level("INFO", logger="elastic_attention"):
        hybrid_attention(q, k, v, routes, pattern=MOBA)
    assert "'auto' chose 'cpu': no fused kernel lets each query choose its own keys, as moba does" in caplog.text


@pytest.mark.parametrize(
    "make, sizes, message",
    [
        (MobaConfig, dict(num_blocks=0), "num_blocks must be at least 1, got 0"),
        (InfllmConfig, dict(local_window=100), "local_window=100 must be a positive multiple of block_size=64"),
        (InfllmConfig, dict(pooling_stride=24), "pooling_stride=24 must divide pooled_tokens=32"),
        (InfllmConfig, dict(num_sink_blocks=65), r"num_sink_blocks=65 must lie in \[0, 64\]"),
        (InfllmConfig, dict(dense_tokens=3), "dense_tokens=3 must be at least pooled_tokens=32"),
    ],
)
def test_wrong_sizes(make, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(**sizes)
