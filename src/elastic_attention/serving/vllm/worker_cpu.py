"""The worker of vLLM's CPU build, with routed heads."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from .attention_cpu import ElasticCPUBackend
from .layout import use_backend
from .worker import RoutingWorker


class ElasticCPUWorker(RoutingWorker, CPUWorker):
    """A CPU worker; the CPU platform knows one backend only, so ours takes its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        use_backend("CPU_ATTN", f"{ElasticCPUBackend.__module__}.{ElasticCPUBackend.__qualname__}")
