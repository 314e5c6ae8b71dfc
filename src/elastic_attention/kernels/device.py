"""Launches on the GPU that holds the tensors: in a model spread over several GPUs it is not always the current one."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def on_its_device(launch: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """A function that launches kernels, with the GPU of its first argument as the current one while it runs."""

    @wraps(launch)
    def run(x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if x.device.type != "cuda":
            return launch(x, *args, **kwargs)
        with torch.cuda.device(x.device):
            return launch(x, *args, **kwargs)

    return run
