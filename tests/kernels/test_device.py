"""Kernels are launched on the GPU of their tensors."""

import ast
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

import elastic_attention.kernels
from elastic_attention.kernels.device import on_its_device


def test_the_gpu_of_the_first_tensor_is_the_current_one_during_a_launch(monkeypatch):
    current = []

    @contextmanager
    def make_current(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", make_current)
    launch = on_its_device(lambda x, *, scale: (list(current), scale))
    assert launch(SimpleNamespace(device=torch.device("cuda:1")), scale=2) == ([torch.device("cuda:1")], 2)
    assert launch(torch.zeros(1), scale=3) == ([], 3)
    assert current == []


def test_every_function_that_launches_a_kernel_is_such_a_launch():
    unguarded, found = [], 0
    for path in Path(elastic_attention.kernels.__file__).parent.glob("*/*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            # kernel[grid](...)
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            if any(isinstance(target, ast.Subscript) for target in calls):
                found += 1
                if "on_its_device" not in map(ast.unparse, function.decorator_list):
                    unguarded.append(f"{path.name}: {function.name}")
    assert found > 5 and not unguarded
