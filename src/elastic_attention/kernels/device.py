"""Launches on the GPU that holds the tensors: in a model spread over several GPUs it is not always the current one."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

Launch = TypeVar("Launch", bound=Callable[..., Any])


def on_its_device(launch: Launch) -> Launch:
    """A function that launches kernels, with the GPU of its first argument as the current one while it runs."""

    @wraps(launch)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = (args[0] if args else next(iter(kwargs.values()))).device
        if device.type != "cuda":
            return launch(*args, **kwargs)
        with torch.cuda.device(device):
            return launch(*args, **kwargs)

    return cast(Launch, run)
