"""What only `generate` knows: where the prompt ends, whether tokens may be taken back, what a probe would say."""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..patterns import build_pattern
from .replay import can_capture, replay_steps

if TYPE_CHECKING:
    from .handle import Handle

_logger = logging.getLogger(__name__)
_ASSISTED_OPTIONS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The prompt under way.

    Attributes:
        num_columns: columns of the prompt, cached turns included; later columns are generated.
        is_assisted: candidates may be taken back.
        routes: (B, L, G) bool routes from a probe, or None.
    """

    num_columns: int
    is_assisted: bool = False
    routes: Tensor | None = None


class Turns:
    """Threads that call `generate` of one model wait for each other here; a copy of a handle has turns of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a model may assist itself

    def __reduce__(self) -> tuple[type["Turns"], tuple[()]]:
        return Turns, ()


def wrap_generate(handle: "Handle") -> None:
    """Put a `generate` on the model instance that tells the handle about the prompt; deep copies keep theirs."""
    handle.model.generate = functools.partial(_generate, handle)


def _generate(handle: "Handle", inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
    """transformers' `generate` of the same model, with routed heads."""
    generate = type(handle.model).generate.__get__(handle.model)
    if not handle._is_enabled:
        return generate(inputs, *args, **kwargs)
    ids = next((kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None), inputs)
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if ids is None:
        raise ValueError("generate needs a prompt; pass input_ids of at least one token.")
    if not isinstance(ids, Tensor) or ids.ndim < 2:
        given = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"generate got {given}; pass input_ids as a tensor (B, T), as in generate(**inputs).")
    if 0 in ids.shape[:2]:
        raise ValueError(f"generate got an empty prompt of shape {tuple(ids.shape)}; pass at least one token a row.")
    past = cache.get_seq_length() if cache is not None else 0
    if mask is not None and past == 0 and mask.shape != ids.shape[:2]:
        raise ValueError(f"attention_mask {tuple(mask.shape)} must have the shape of the ids, {tuple(ids.shape[:2])}.")
    if mask is not None and not bool(mask.bool().any(dim=-1).all()):
        rows = (~mask.bool().any(dim=-1)).nonzero()[:, 0].tolist()
        raise ValueError(f"Rows {rows} of the attention_mask are all padding; give each row at least one token.")
    num_columns = max(ids.shape[1], mask.shape[1] if mask is not None else 0)
    if num_columns <= past:
        raise ValueError(
            f"generate got {num_columns} columns, but the cache already holds {past}; pass the ids of the whole "
            "conversation, or the new ones with an attention_mask over everything."
        )
    _refuse_long_prompt(handle, num_columns, mask)
    _warn_without_cache(handle, kwargs)
    with handle.turns.lock:
        routes = None
        if handle.prefill_policy == "probe" and past == 0 and not handle.has_given_routes and ids.ndim == 2:
            routes = probe_routes(handle, ids, mask)
        prompt = Prompt(num_columns=num_columns, is_assisted=_is_assisted(handle, kwargs), routes=routes)
        replays = handle.replays_steps and can_capture(handle.model.device)
        with tell_prompt(handle, prompt), replay_steps(handle) if replays else contextlib.nullcontext():
            handle.restart_report()
            return generate(inputs, *args, **kwargs)


@contextlib.contextmanager
def tell_prompt(handle: "Handle", prompt: Prompt) -> Iterator[None]:
    """Inside, forwards belong to `prompt`."""
    before, handle.prompt = handle.prompt, prompt
    try:
        yield
    finally:
        handle.prompt = before


def probe_routes(handle: "Handle", input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Routes decided from a short dense pass over the first and last n tokens of each prompt.

    Args:
        input_ids: (B, T) int.
        attention_mask: (B, T), 1 = real; None = all real.

    Returns:
        (B, L, G) bool, True = sparse. Prompts no longer than sink + window stay full.
    """
    config, n = handle.config, handle.config.router.pooled_tokens
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    rank, total = real.cumsum(1) - 1, real.sum(1, keepdim=True)
    keep = real & ((rank < n) | (rank >= total - n))
    width = int(keep.sum(1).max())
    order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True)[:, -width:]  # left-padded
    routes = torch.zeros(len(input_ids), config.base_model.num_layers, config.base_model.num_kv_heads, dtype=torch.bool)

    def decide(index: int, pooled: Tensor) -> Tensor:
        routes[:, index] = handle.decide(index, pooled).cpu()
        return torch.zeros(pooled.shape[:2], dtype=torch.bool)

    with torch.no_grad(), handle.routed_by(decide, is_sampling=False):
        handle.model.base_model(
            input_ids=input_ids.gather(1, order),
            attention_mask=keep.gather(1, order).long(),
            position_ids=rank.gather(1, order).clamp(min=0),
            use_cache=False,
        )
    return routes & (total.cpu() > build_pattern(config.sparse_pattern).dense_tokens)[:, :, None]


def _refuse_long_prompt(handle: "Handle", num_columns: int, mask: Tensor | None) -> None:
    limit = getattr(handle.model.config.get_text_config(), "max_position_embeddings", None)
    tokens = num_columns if mask is None else int(mask.bool().sum(dim=-1).max())
    if limit is not None and tokens > limit:
        raise ValueError(
            f"The prompt has {tokens} tokens, the model takes {limit} (max_position_embeddings); shorten it, or load "
            "the model with a RoPE scaling that reaches further."
        )


def _is_assisted(handle: "Handle", kwargs: dict[str, Any]) -> bool:
    configs = [c for c in (kwargs.get("generation_config"), handle.model.generation_config) if c is not None]
    if any(getattr(c, "is_assistant", False) for c in configs):  # the model that proposes takes back what is refused
        return True
    return any(
        kwargs.get(name) is not None or any(getattr(c, name, None) is not None for c in configs)
        for name in _ASSISTED_OPTIONS
    )


def _warn_without_cache(handle: "Handle", kwargs: dict[str, Any]) -> None:
    config = kwargs.get("generation_config") or handle.model.generation_config
    uses_cache = kwargs.get("use_cache", getattr(config, "use_cache", True))
    if uses_cache is False and not handle.has_given_routes:
        _warn_once("use_cache=False decides the routes again at every token; set_routes fixes them.")


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)
