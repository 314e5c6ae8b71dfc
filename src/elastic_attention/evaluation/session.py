"""A loaded model with its tokenizer and its handle: what every command that runs a model starts from."""

from __future__ import annotations

import platform
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import ElasticConfig
from ..errors import BackendUnavailable, ElasticAttentionError
from ..models.attach import attach
from ..models.embedded import ALIAS, HUB_ID, quiet_transformers, resolve_model
from ..models.handle import Handle
from ..models.loading import load_model, read_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A loaded model with its tokenizer.

    Attributes:
        name: the name the user gave.
        context: longest sequence the model takes, in tokens, prompt and answer together.
    """

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    context: int

    def describe(self) -> dict[str, Any]:
        """The model as a record names it."""
        base = ElasticConfig.for_model(self.model).base_model
        return {
            "name": HUB_ID if self.name == ALIAS else self.name,
            "layers": base.num_layers,
            "q_heads": base.num_q_heads,
            "kv_heads": base.num_kv_heads,
            "head_dim": base.head_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Session(Base):
    """An attached model that is ready to answer."""

    handle: Handle

    @property
    def dense_bytes_per_token(self) -> int:
        """Bytes that one token takes in the cache of the base model's full-attention layers."""
        config = self.handle.config
        heads = len(config.routed_layers) * config.base_model.num_kv_heads
        return heads * 2 * config.base_model.head_dim * self.dtype.itemsize


def open_session(
    name: str,
    *,
    routers: str | Path | ElasticConfig | None = None,
    device: str | None = None,
    dtype: str | None = None,
    decode: str = "sparse",
    backend: str = "auto",
    budget: float = 0.0,
) -> Session:
    """Load a model and attach routers to it.

    Args:
        name: "smollm2" (the embedded model), a folder, or a hub id.
        routers: adapter folder, hub id or configuration; None takes those that ship with the package.
        device: torch device; None is "cuda" where there is a GPU, else "cpu".
        dtype: "float32", "bfloat16", "float16"; None is the quickest that the device multiplies natively.
        decode, backend: as in `attach`.
        budget: `Handle.budget`.

    Raises:
        ElasticAttentionError: the model cannot be loaded or attached, or an option is unknown; names the remedy.
    """
    base = open_base(name, device=device, dtype=dtype)
    handle = attach(base.model, routers, decode=decode, backend=backend)
    handle.budget = budget
    return Session(
        name=name,
        model=base.model,
        tokenizer=base.tokenizer,
        handle=handle,
        device=base.device,
        dtype=base.dtype,
        context=base.context,
    )


def open_base(name: str, *, device: str | None = None, dtype: str | None = None) -> Base:
    """Load a model without attaching anything; arguments and errors as in `open_session`."""
    place = choose_device(device)
    kind = choose_dtype(place, dtype)
    model, tokenizer = _load(name, place, kind)
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0)) or 1 << 31
    return Base(name=name, model=model, tokenizer=tokenizer, device=place, dtype=kind, context=context)


def choose_device(name: str | None) -> torch.device:
    """The torch device `name`, or the best one here for None.

    Raises:
        BackendUnavailable: there is no such device on this computer.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # the device "meta" makes tensors that hold nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(":")[0].rstrip(".")
        if reason.startswith("Expected one of"):  # its list of all kinds there are
            reason = "PyTorch knows no such kind"
        raise BackendUnavailable(f"device {name!r} cannot be used: {reason}. Use --device cpu.") from error
    return device


def choose_dtype(device: torch.device, name: str | None) -> torch.dtype:
    """The torch dtype `name`; for None bfloat16 where the device multiplies it natively, else float32.

    Raises:
        ElasticAttentionError: an unknown name.
    """
    if name is not None:
        return read_dtype(name)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        is_native = any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16"))
        return torch.bfloat16 if is_native else torch.float32
    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_native else torch.float32


def describe_device(device: torch.device) -> str:
    """The device in words: kind, threads, name of the processor."""
    if device.type == "cuda":
        return f"1 GPU, {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}, {_read_processor_name()}"


def measure_peak_bytes(device: torch.device) -> int | None:
    """Most memory that this process has held so far: on a GPU there, otherwise in RAM. None where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Not ru_maxrss where it can be helped: a process starts with the ru_maxrss of the one that started it.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows has no such counter
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)


def make_head_map(routes: torch.Tensor, routed_layers: tuple[int, ...]) -> list[list[int | None]]:
    """Routes (L, G) bool as the head map of a record: 1 = sparse, 0 = full, None = a layer that is not routed."""
    num_heads = routes.shape[1]
    return [
        [int(is_sparse) for is_sparse in row] if layer in routed_layers else [None] * num_heads
        for layer, row in enumerate(routes.tolist())
    ]


def _load(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    path = resolve_model(name)
    try:
        with quiet_transformers():
            return load_model(path, dtype=str(dtype).removeprefix("torch."), device=str(device))
    except ElasticAttentionError:
        raise
    except Exception as error:  # what a damaged folder raises in transformers is of any type
        reason = textwrap.shorten(f"{type(error).__name__}, {error}", 200, placeholder=" …").rstrip(".")
        raise ElasticAttentionError(
            f"Cannot load the model {name!r}: {reason}. Name a folder with a safetensors checkpoint, "
            "a hub id, or 'smollm2'."
        ) from error


def _read_processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
