"""Which kernels "auto" takes, what is said about it, and when short inputs go to dense attention instead."""

import logging

import pytest
import torch

from elastic_attention.attention import blended_attention, hybrid_attention
from elastic_attention.attention.short import LONGEST, attend_short, is_short
from elastic_attention.config import StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.errors import BackendUnavailable
from elastic_attention.kernels import backends

pytest.importorskip("triton")

GPU = torch.device("cuda", 0)
PATTERN = StreamingConfig(num_sink_tokens=128, local_window=256, block_size=128)


@pytest.fixture
def hopper_gpu(monkeypatch):
    """A machine on which the hopper kernel runs, as far as the choice can see."""
    monkeypatch.setattr("elastic_attention.kernels.hopper.explain_machine", lambda *_: None)
    caches = backends.explain_backend, backends.log_choice
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, "hopper"),
        ({"needs_gradient": True}, "triton"),
        ({"dtype": torch.float64}, "cpu"),
        ({"head_dim": 72}, "cpu"),
    ],
)
def test_auto_takes_the_fastest_that_runs(hopper_gpu, options, chosen):
    assert backends.choose_backend("auto", GPU, **options) == chosen


def test_auto_says_why_once(hopper_gpu, caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            backends.choose_backend("auto", GPU)
    assert [record.message for record in caplog.records] == [
        "backend 'auto' chose 'hopper': the fastest kernel for this GPU, one launch for all heads of a layer."
    ]


def test_tensors_that_hopper_cannot_read_go_to_triton(hopper_gpu, caplog):
    q = torch.zeros(2, 4, 16, 64, dtype=torch.bfloat16)
    assert backends.check_tensors("auto", "hopper", q, q, q) == "hopper"
    assert backends.check_tensors("auto", "triton", q, q, q.expand(2, -1, -1, -1)) == "triton"
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert backends.check_tensors("auto", "hopper", q, q, q, list_block=64) == "triton"
    assert [record.message for record in caplog.records] == [
        "backend 'auto' chose 'triton': 'hopper' would be faster, but it needs lists of blocks of 128 tokens, not 64."
    ]
    with pytest.raises(BackendUnavailable, match="'hopper' cannot run here: its copies need rows at 16-byte steps"):
        backends.check_tensors("hopper", "hopper", q[..., 1:], q, q)


@pytest.mark.parametrize(
    ("tokens", "keys", "pattern", "full", "backend", "dtype", "expected"),
    [
        (100, 100, PATTERN, "full", "hopper", torch.bfloat16, True),
        (384, 384, PATTERN, "full", "triton", torch.float16, True),
        (385, 385, PATTERN, "full", "hopper", torch.bfloat16, False),  # a sparse head leaves something out
        (LONGEST + 1, LONGEST + 1, StreamingConfig(), "full", "hopper", torch.bfloat16, False),
        (50, 100, PATTERN, "full", "hopper", torch.bfloat16, False),
        (100, 100, PATTERN, "full", "cpu", torch.bfloat16, False),
        (100, 100, PATTERN, "full", "triton", torch.float32, False),
        (100, 100, TriangleConfig(), "full", "hopper", torch.bfloat16, False),
    ],
)
def test_what_is_short(tokens, keys, pattern, full, backend, dtype, expected):
    q, k = torch.empty(1, 4, tokens, 64, dtype=dtype), torch.empty(1, 2, keys, 64, dtype=dtype)
    assert is_short(q, k, pattern, full, backend) is expected


def test_short_inputs_get_the_same_result():
    q, k, v = torch.randn(2, 4, 60, 16), torch.randn(2, 2, 60, 16), torch.randn(2, 2, 60, 16)
    routes = torch.tensor([[True, False], [False, True]])
    wanted = hybrid_attention(q, k, v, routes, pattern=PATTERN, scale=0.3, backend="reference")
    torch.testing.assert_close(attend_short(q, k, v, 0.3), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("block", "chosen"), [(64, "triton"), (128, "hopper")])
def test_training_looks_at_the_lists_of_full_heads(monkeypatch, block, chosen):
    taken = []
    monkeypatch.setattr("elastic_attention.attention.plan.choose_backend", lambda *_, **__: "hopper")
    monkeypatch.setattr("elastic_attention.attention.blended.blend_paths", lambda *args: taken.append(args[-1]))
    q = torch.zeros(1, 2, 40, 64, dtype=torch.bfloat16)
    blended_attention(q, q, q, torch.zeros(1, 2), pattern=PATTERN, full_pattern=XAttentionConfig(block_size=block))
    assert taken == [chosen]


def test_the_log_says_what_short_inputs_run_on(monkeypatch, caplog):
    q = torch.randn(1, 2, 40, 16, dtype=torch.bfloat16)
    monkeypatch.setattr("elastic_attention.attention.hybrid.choose_for", lambda *args: "triton")
    backends.log_choice.cache_clear()
    with caplog.at_level("INFO"):
        hybrid_attention(q, q, q, torch.zeros(1, 2, dtype=torch.bool), pattern=PATTERN)
    assert "backend 'auto' chose 'sdpa'" in caplog.text
