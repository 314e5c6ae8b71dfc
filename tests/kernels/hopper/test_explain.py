"""What the hopper backend says about tensors and machines that it cannot serve."""

import sys

import pytest
import torch

from elastic_attention.kernels.arguments import is_describable
from elastic_attention.kernels.hopper import explain_machine, explain_tensors, explain_triton


def test_cpu_tensors_are_refused_with_a_reason() -> None:
    assert "NVIDIA GPU" in str(explain_machine(torch.device("cpu"), torch.bfloat16, 64))


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "word"),
    [
        ((8, 0), torch.bfloat16, 128, "capability 9"),
        ((10, 0), torch.bfloat16, 128, "capability 9"),
        ((9, 0), torch.float32, 128, "bfloat16 or float16"),
        ((9, 0), torch.bfloat16, 96, "head dim"),
        ((9, 0), torch.float16, 128, "None"),
    ],
)
def test_each_requirement_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, head_dim: int, word: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert word in str(explain_machine(torch.device("cuda", 0), dtype, head_dim))


def test_a_triton_without_gluon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.experimental.gluon.language.nvidia.hopper", None)
    assert "Gluon" in str(explain_triton())


def test_rows_of_any_stride_are_describable() -> None:
    x = torch.zeros(2, 300, 4, 128, dtype=torch.bfloat16)
    assert is_describable(x.transpose(1, 2))
    assert is_describable(x[:, 100:200].transpose(1, 2))
    assert is_describable(torch.zeros(2, 4, 300, 384, dtype=torch.bfloat16)[..., 128:256])


def test_tensors_and_lists_that_it_cannot_read() -> None:
    q, k = torch.zeros(1, 4, 8, 64, dtype=torch.bfloat16), torch.zeros(1, 2, 8, 64, dtype=torch.bfloat16)
    assert explain_tensors(q, k, k) is None and explain_tensors(q, k, k, 128) is None
    assert explain_tensors(q[:, :, :0], k, k) is None  # nothing to do
    assert "blocks of 128 tokens, not 64" in str(explain_tensors(q, k, k, 64))
    assert "v has strides" in str(explain_tensors(q, k, k.expand(3, -1, -1, -1)))


def test_what_the_copy_engine_cannot_read() -> None:
    x = torch.zeros(2, 4, 300, 132, dtype=torch.bfloat16)
    assert not is_describable(x[..., :128])  # rows of 264 bytes
    assert not is_describable(torch.zeros(2, 4, 300, 128, dtype=torch.bfloat16)[..., 4:])  # starts at byte 8
    assert not is_describable(torch.zeros(2, 1, 300, 128, dtype=torch.bfloat16).expand(2, 4, 300, 128))
    assert not is_describable(torch.zeros(2, 4, 128, 300, dtype=torch.bfloat16).transpose(2, 3))
    assert not is_describable(torch.zeros(2, 4, 0, 128, dtype=torch.bfloat16))
