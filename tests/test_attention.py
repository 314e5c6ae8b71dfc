"""The three verbs: padding, packing, ragged decoding, and what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention import BackendUnavailable, StreamingConfig, blended_attention, decode_attention, hybrid_attention
from elastic_attention.attention.layout import pad_spans
from elastic_attention.cache import ElasticCache
from elastic_attention.patterns import build_pattern
from elastic_attention.types import HeadRoutes
from oracles import attend_naively, streaming_configs

CONFIG = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
BACKENDS = ["cpu", "reference"]


def make_qkv(batch, num_queries, num_keys, *, group_size=3, num_kv_heads=2):
    return (
        torch.randn(batch, group_size * num_kv_heads, num_queries, 16),
        torch.randn(batch, num_kv_heads, num_keys, 16),
        torch.randn(batch, num_kv_heads, num_keys, 16),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_queries", [150, 111, 40, 1])
def test_left_padding_equals_each_sequence_alone_and_nan_does_not_leak(backend, num_queries):
    num_keys, padding = 150, torch.tensor([0, 37, 120, 149, 150])
    q, k, v = make_qkv(5, num_queries, num_keys)
    routes = torch.tensor([[True, False], [False, True], [True, True], [False, False], [True, False]])
    for b, pad in enumerate(padding.tolist()):
        k[b, :, :pad], v[b, :, :pad] = torch.nan, torch.nan
        q[b, :, : max(0, pad - num_keys + num_queries)] = torch.nan
    out, lse = hybrid_attention(q, k, v, routes, pattern=CONFIG, left_padding=padding, return_lse=True, backend=backend)
    for b, pad in enumerate(padding.tolist()):
        first = max(0, pad - num_keys + num_queries)
        assert not out[b, :, :first].any() and bool((lse[b, :, :first] == -torch.inf).all())
        if first < num_queries:
            parts = q[b : b + 1, :, first:], k[b : b + 1, :, pad:], v[b : b + 1, :, pad:]
            alone, alone_lse = hybrid_attention(
                *parts, routes[b : b + 1], pattern=CONFIG, return_lse=True, backend=backend
            )
            assert torch.equal(out[b, :, first:], alone[0]) and torch.equal(lse[b, :, first:], alone_lse[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_gets_no_gradient_and_gives_none(backend):
    q, k, v = (x.requires_grad_() for x in make_qkv(3, 100, 100))
    route = torch.rand(3, 2, requires_grad=True)
    padding = torch.tensor([0, 30, 100])
    blended = blended_attention(q, k, v, route, pattern=CONFIG, left_padding=padding, backend=backend)
    hybrid = hybrid_attention(q, k, v, route > 0.5, pattern=CONFIG, left_padding=padding, backend=backend)
    assert not blended[1, :, :30].any() and not blended[2].any()
    for out in (blended, hybrid):
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        for grad in grads:
            assert not grad[1, :, :30].any() and not grad[2].any() and bool(torch.isfinite(grad).all())
            assert grad[0].any() and grad[1, :, 30:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_segments_equal_each_alone(backend):
    lengths_q, lengths_k = [63, 0, 1, 111], [63, 5, 40, 200]
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0).int() for n in (lengths_q, lengths_k))
    q, k, v = (torch.randn(int(cu[-1]), heads, 16) for cu, heads in ((cu_q, 6), (cu_k, 2), (cu_k, 2)))
    routes = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    out, lse = hybrid_attention(
        q, k, v, routes, pattern=CONFIG, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True, backend=backend
    )
    assert out.shape == q.shape and lse.shape == q.shape[:2]
    for i in range(4):
        if lengths_q[i]:
            rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
            parts = (x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
            alone = hybrid_attention(*parts, routes[i : i + 1], pattern=CONFIG, backend=backend)
            torch.testing.assert_close(out[rows], alone[0].transpose(0, 1))


def test_packed_keys_default_to_the_queries_boundaries():
    cu = torch.tensor([0, 70, 100], dtype=torch.int32)
    q, k, v = torch.randn(100, 6, 16), torch.randn(100, 2, 16), torch.randn(100, 2, 16)
    routes = torch.tensor([[True, False], [True, True]])
    both = hybrid_attention(q, k, v, routes, pattern=CONFIG, cu_seqlens_q=cu, cu_seqlens_k=cu)
    assert torch.equal(hybrid_attention(q, k, v, routes, pattern=CONFIG, cu_seqlens_q=cu), both)


@given(
    config=streaming_configs(), lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3), seed=st.integers(0, 99)
)
@settings(max_examples=30)
def test_decoding_over_the_ragged_cache_equals_the_last_row(config, lengths, seed):
    """After eviction too: what a sparse row still holds is exactly what its newest query may read."""
    torch.manual_seed(seed)
    batch, longest = len(lengths), max(lengths)
    q, k, v = make_qkv(batch, 1, longest)
    routes = torch.rand(batch, 2) < 0.5
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    store = ElasticCache(build_pattern(config))
    store.append(k, v, real)
    store.assign(HeadRoutes(routes))
    store.evict()
    out = decode_attention(q, store)
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)
        wanted, _ = attend_naively(q[row], k[row, :, :n], v[row, :, :n], routes[row], config)
        torch.testing.assert_close(out[row], wanted, rtol=1e-5, atol=2e-6)


def test_refusals_name_the_value():
    q, k, v = make_qkv(2, 40, 50)
    routes = torch.zeros(2, 2, dtype=torch.bool)

    def call(q=q, k=k, v=v, routes=routes, **options):
        return hybrid_attention(q, k, v, routes, pattern=CONFIG, **options)

    cases = [
        (dict(q=q[0]), "4 dimensions"),
        (dict(v=v[:, :, :-1]), "shape of v"),
        (dict(k=k.double(), v=v.double()), "float64"),
        (dict(q=q.long(), k=k.long(), v=v.long()), "int64"),
        (dict(q=q[..., :8]), "head dims"),
        (dict(q=q[:, :5]), "divide"),
        (dict(k=k[:, :0], v=v[:, :0]), "divide"),
        (dict(routes=routes[:1]), r"\(2, 2\)"),
        (dict(routes=routes.float()), "float32"),
        (dict(q=q[:1]), "batch size|routes"),
        (dict(k=k[:, :, :39], v=v[:, :, :39]), "no more queries"),
        (dict(left_padding=torch.tensor([0])), "left_padding"),
        (dict(left_padding=torch.tensor([0, 51])), "51"),
        (dict(left_padding=torch.tensor([-1, 0])), "-1"),
        (dict(prompt_lengths=torch.tensor([50])), r"prompt_lengths must be \(2,\)"),
        (dict(prompt_lengths=torch.tensor([[50], [50]])), r"prompt_lengths must be \(2,\)"),
        (dict(prompt_lengths=torch.tensor([50.0, 50.0])), "prompt_lengths.*float32"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            call(**changes)
    with pytest.raises(ValueError, match=r"prompt_lengths must be \(2,\)"):  # kernels read as many as there are routes
        blended_attention(q, k, v, routes.float(), pattern=CONFIG, prompt_lengths=torch.tensor([50]))
    packed = torch.randn(40, 6, 16), torch.randn(40, 2, 16), torch.randn(40, 2, 16)
    for cu in ([0, 20, 41], [1, 20, 40], [0, 30, 20, 40], [0, 20, 39]):
        boundaries = torch.tensor(cu, dtype=torch.int32)
        with pytest.raises(ValueError, match="cu_seqlens"):
            hybrid_attention(
                *packed, torch.zeros(len(cu) - 1, 2, dtype=torch.bool), pattern=CONFIG, cu_seqlens_q=boundaries
            )
    with pytest.raises(ValueError, match="cu_seqlens"):
        hybrid_attention(
            *packed,
            torch.zeros(2, 2, dtype=torch.bool),
            pattern=CONFIG,
            cu_seqlens_q=torch.tensor([0, 20, 40]),
            cu_seqlens_k=torch.tensor([0, 10, 40]),
        )
    with pytest.raises(ValueError, match="left_padding"):
        hybrid_attention(
            *packed,
            torch.zeros(1, 2, dtype=torch.bool),
            pattern=CONFIG,
            cu_seqlens_q=torch.tensor([0, 40]),
            left_padding=torch.tensor([0]),
        )


@pytest.mark.parametrize("verb", [hybrid_attention, blended_attention])
@pytest.mark.parametrize("turned", range(3))
def test_rows_that_are_not_contiguous_are_refused(verb, turned):
    """Kernels would read the numbers in another order, and no shape would tell."""
    tensors = make_qkv(1, 40, 50)
    tensors = [x.mT.contiguous().mT if i == turned else x for i, x in enumerate(tensors)]
    routes = torch.zeros(1, 2, dtype=torch.bool if verb is hybrid_attention else torch.float32)
    with pytest.raises(ValueError, match=r"last dimension.*contiguous\(\)"):
        verb(*tensors, routes, pattern=CONFIG)


@pytest.mark.parametrize("scale", [0, -1, float("nan")])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_scales_that_are_not_positive_are_refused(backend, scale):
    tensors, config = make_qkv(1, 40, 50), build_pattern(CONFIG)
    with pytest.raises(ValueError, match=f"scale={scale} must be positive"):
        hybrid_attention(*tensors, torch.zeros(1, 2, dtype=torch.bool), pattern=CONFIG, scale=scale, backend=backend)
    with pytest.raises(ValueError, match=f"scale={scale} must be positive"):
        blended_attention(*tensors, torch.zeros(1, 2), pattern=CONFIG, scale=scale, backend=backend)
    with pytest.raises(ValueError, match=f"scale={scale} must be positive"):
        decode_attention(tensors[0][:, :, -1:], ElasticCache(config), scale=scale)


def test_a_bound_that_is_too_small():
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(1, 40, 40))
    ends = torch.tensor([0, 30, 40])
    routes = torch.zeros(2, 2, dtype=torch.bool)
    hybrid_attention(q, k, v, routes, pattern=CONFIG, cu_seqlens_q=ends, max_seqlen_q=30)
    with pytest.raises(ValueError, match="max_seqlen_q=29 is less"):
        hybrid_attention(q, k, v, routes, pattern=CONFIG, cu_seqlens_q=ends, max_seqlen_q=29)


def test_one_token_a_sequence_is_decoded():
    store = ElasticCache(build_pattern(CONFIG))
    store.append(torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16))
    for q in (torch.randn(1, 4, 2, 16), torch.randn(1, 4, 16, 2).mT[:, :, :1], torch.randn(4, 1, 16)):
        with pytest.raises(ValueError, match=r"\(B, H, 1, D\)"):
            decode_attention(q, store)


@pytest.mark.parametrize(("verb", "dtype"), [(hybrid_attention, torch.bool), (blended_attention, torch.float32)])
def test_spans_stand_alone(verb, dtype):
    q, k, v = make_qkv(1, 40, 40)
    spans = pad_spans(torch.tensor([3]), q, k)
    with pytest.raises(ValueError, match="leave out left_padding"):
        verb(q, k, v, torch.zeros(1, 2, dtype=dtype), pattern=CONFIG, spans=spans, left_padding=torch.tensor([0]))


@pytest.mark.parametrize("verb", [hybrid_attention, blended_attention])
def test_unknown_backend(verb):
    q, k, v = make_qkv(1, 4, 4)
    routes = torch.zeros(1, 2, dtype=torch.bool if verb is hybrid_attention else torch.float32)
    with pytest.raises(BackendUnavailable, match="'flash'.*'cpu'"):
        verb(q, k, v, routes, pattern=CONFIG, backend="flash")


def test_unknown_pattern():
    q, k, v = make_qkv(1, 4, 4)
    with pytest.raises(TypeError, match="StreamingConfig"):
        hybrid_attention(q, k, v, torch.ones(1, 2, dtype=torch.bool), pattern={"sink": 4}, backend="reference")


def test_auto_logs_its_choice_once(caplog):
    from elastic_attention.kernels import backends

    backends.log_choice.cache_clear()
    q, k, v = make_qkv(1, 4, 4)
    with caplog.at_level("INFO", logger="elastic_attention"):
        for _ in range(3):
            hybrid_attention(q, k, v, torch.ones(1, 2, dtype=torch.bool), pattern=CONFIG)
    assert [record.getMessage() for record in caplog.records if "auto" in record.getMessage()] == [
        "backend 'auto' chose 'cpu': PyTorch's fused kernels on gathered blocks run on every device."
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(2, 0, 5), (0, 3, 5), (2, 0, 0)])
def test_nothing_in_nothing_out(backend, sizes):
    """PyTorch's fused kernel kills the process when it is given no queries."""
    q, k, v = make_qkv(*sizes)
    out, lse = hybrid_attention(
        q, k, v, torch.ones(sizes[0], 2, dtype=torch.bool), pattern=CONFIG, return_lse=True, backend=backend
    )
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    assert blended_attention(q, k, v, torch.ones(sizes[0], 2), pattern=CONFIG, backend=backend).shape == q.shape
