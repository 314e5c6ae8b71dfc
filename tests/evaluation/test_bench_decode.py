"""Decode beside PyTorch's dense attention: the gate before the times, and the bytes that the routes need."""

import pytest
import torch

from elastic_attention import StreamingConfig
from elastic_attention.evaluation import bench_decode
from elastic_attention.evaluation.oracle import OracleMismatch

PATTERN = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_passes_its_own_gate(dtype):
    assert bench_decode.check_decode(PATTERN, device=DEVICE, dtype=dtype) < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("fault", [0.1, float("nan")])
def test_a_wrong_kernel_is_not_timed(monkeypatch, fault):
    right = bench_decode.decode_attention
    monkeypatch.setattr(bench_decode, "decode_attention", lambda q, store: right(q, store) + fault)
    with pytest.raises(OracleMismatch, match="decode kernel differs"):
        next(bench_decode.measure_gpu_decode([(64, 1)], device=DEVICE, pattern=PATTERN))


def test_caches_take_turns():
    calls = []
    run = bench_decode._take_turns([lambda: calls.append(0), lambda: calls.append(1)])
    for i in range(5):
        run(i)
    assert calls == [0, 1, 0, 1, 0] and bench_decode._count_sets(2**20) == 256
