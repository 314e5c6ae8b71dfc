"""The worker of vLLM on GPUs, with routed heads."""

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from .layout import register_flash
from .worker import RoutingWorker


class ElasticGPUWorker(RoutingWorker, Worker):
    """A GPU worker that knows our attention backend."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        register_flash()
