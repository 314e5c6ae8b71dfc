"""Finding the budget that gives a wanted sparsity on sample prompts."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..patterns import build_pattern

if TYPE_CHECKING:
    from .handle import Handle

_MAX_STEPS = 24
_WIDEST = 64.0


def calibrate_budget(handle: "Handle", prompts: Sequence[Any], target: float, tolerance: float) -> dict[str, float]:
    """Bisect the budget; see `Handle.calibrate`.

    Raises:
        ValueError: the target is no ratio, or a prompt is no token ids or too short to be routed.
    """
    if not 0.0 <= target <= 1.0:
        raise ValueError(f"target={target} must be a ratio in [0, 1].")
    if len(prompts) == 0:
        raise ValueError("calibrate needs at least one prompt.")
    if handle.is_static:
        raise ValueError(
            "A static mask has no budget to calibrate; attach routers, or convert the mask at another msr."
        )
    if handle.has_given_routes:
        raise ValueError("calibrate needs the router's own routes; call set_routes(None) first.")
    batches = [_read_prompt(prompt).to(handle.model.device) for prompt in prompts]
    shortest = min(b.shape[1] for b in batches)
    needed = build_pattern(handle.config.sparse_pattern).dense_tokens
    if shortest <= needed:
        raise ValueError(f"A prompt of {shortest} tokens is too short to be routed; give more than {needed} tokens.")
    before = handle.budget
    try:
        low, high, best = -1.0, 1.0, (float("inf"), 0.0, 0.0)
        while _measure(handle, batches, low) > target and low > -_WIDEST:
            low *= 2
        while _measure(handle, batches, high) < target and high < _WIDEST:
            high *= 2
        for _ in range(_MAX_STEPS):
            budget = (low + high) / 2
            msr = _measure(handle, batches, budget)
            best = min(best, (abs(msr - target), budget, msr))
            if best[0] <= tolerance:
                break
            low, high = (budget, high) if msr < target else (low, budget)
        before = best[1]
    finally:
        handle.budget = before
    return {"budget": best[1], "msr": best[2], "tolerance": best[0]}


def _read_prompt(prompt: Any) -> torch.Tensor:
    """(1, T) ids of a list, or of a tensor (T,) or (1, T)."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # text, a tokenizer's whole answer, ragged lists
        ids = torch.as_tensor(prompt)
        if not ids.is_floating_point() and ids.numel() in ids.shape:
            return ids.reshape(1, -1)
    shown = " ".join(repr(prompt).split())
    raise ValueError(
        f"calibrate got the prompt {shown:.60}; each prompt is a list of token ids or a (1, T) tensor, as in "
        'tokenizer(text)["input_ids"].'
    )


def _measure(handle: "Handle", batches: Sequence[torch.Tensor], budget: float) -> float:
    handle.budget = budget
    ratios = []
    with torch.no_grad():
        for ids in batches:
            handle.model.base_model(input_ids=ids, use_cache=False)
            ratios += handle.report()["msr"]
    return sum(ratios) / len(ratios)
