"""The other flags of vLLM that the plugin's one flag stands for, and the checks before anything is loaded."""

import functools
import os
from typing import Any

import torch
from prometheus_client import REGISTRY
from vllm.v1.sample.logits_processor import LogitsProcessor

from ...config import ElasticConfig
from ..metrics import RouteMetrics
from ..policy import ServingConfig, streaming
from ..report import KEY
from ..requests import read_route_request
from .engine import open_adapter
from .layout import check_release, choose_block_size, read_extra, register_flash, watch_reports

_HERE = __name__.rpartition(".")[0]


def complete_arguments(arguments: Any) -> None:
    """Fill in what routed heads need, in the `EngineArgs` of a server that asked for them.

    Raises:
        AdapterError, UnsupportedModel, ValueError: the adapter, the model or another flag does not fit.
        BackendUnavailable: this vLLM is too old.
    """
    from vllm import __version_tuple__
    from vllm.platforms import current_platform

    check_release(__version_tuple__)
    serving = ServingConfig.read(arguments.additional_config[KEY])
    model_config = arguments.create_model_config()
    config, _ = open_adapter(model_config, serving)
    _refuse(arguments)
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # only its successor's metadata since 0.32 name their rows
    is_cpu = current_platform.is_cpu()
    worker = "worker_cpu.ElasticCPUWorker" if is_cpu else "worker_cuda.ElasticGPUWorker"
    scheduler = "scheduler.ElasticScheduler" if is_cpu else "scheduler.ElasticAsyncScheduler"
    _set(arguments, "worker_cls", "auto", f"{_HERE}.{worker}")
    _set(arguments, "scheduler_cls", None, f"{_HERE}.{scheduler}")
    block = streaming(config).block_size
    if arguments.block_size is None:
        arguments.block_size = choose_block_size(block, 32 if is_cpu else 16)
    if block % arguments.block_size:
        raise ValueError(f"--block-size {arguments.block_size} does not divide the adapter's block_size={block}.")
    if RouteOptions not in (arguments.logits_processors or []):
        arguments.logits_processors = [*(arguments.logits_processors or []), RouteOptions]
    if not is_cpu:
        _prepare_flash(arguments)
    RouteOptions.config = config
    watch_reports(_find_metrics().note)


def _prepare_flash(arguments: Any) -> None:
    """FlashAttention with our classes, over head-major blocks."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    register_flash()
    os.environ["VLLM_KV_CACHE_LAYOUT"] = "HND"
    _set(arguments, "attention_backend", None, AttentionBackendEnum.CUSTOM)
    arguments.disable_cascade_attn = True


@functools.cache
def _find_metrics() -> RouteMetrics:
    return RouteMetrics(REGISTRY)


def _set(arguments: Any, name: str, default: Any, value: Any) -> None:
    if getattr(arguments, name) not in (default, value):
        raise ValueError(
            f"--{name.replace('_', '-')} {getattr(arguments, name)} cannot be combined with routed heads, which bring "
            "their own; leave it out."
        )
    setattr(arguments, name, value)


def _refuse(arguments: Any) -> None:
    for name, default in (
        ("pipeline_parallel_size", 1),
        ("decode_context_parallel_size", 1),
        ("prefill_context_parallel_size", 1),
        ("enable_dbo", False),  # a half of a step does not say whose rows it has
        ("ubatch_size", 0),
        ("kv_transfer_config", None),  # it shares blocks of generated tokens, and carries no mean queries
        ("kv_offloading_size", None),
        ("kv_cache_dtype", "auto"),
        ("speculative_config", None),
        ("kv_sharing_fast_prefill", False),
    ):
        value = getattr(arguments, name, default)
        if value != default:
            raise ValueError(f"--{name.replace('_', '-')} {value} cannot be combined with routed heads; leave it out.")


class RouteOptions(LogitsProcessor):
    """Checks the options of a request where vLLM admits it, so that a bad one is refused with status 400.

    It is a logits processor because these are asked then; it never touches a logit.
    """

    config: ElasticConfig | None = None

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None: ...

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for options that do not fit the model."""
        assert cls.config is not None
        read_route_request(read_extra(sampling_params), cls.config)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """True."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing is kept."""
