"""Retrieval heads: which heads look at the needle while the model says it (Elastic Attention, Tab. 5's static ranking).

Shape letters: L layers, G KV heads, H query heads, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..errors import ElasticAttentionError
from ..models.checkpoint import save_static_routes
from ..models.families import find_attention_modules
from ..models.static_masks import mark_sparsest
from ..settings import to_dict
from ..tasks import Corpora, generate, render
from ..tasks.corpora_suite import with_marks


def rank_retrieval_heads(
    model: Any, tokenizer: Any, corpora: Corpora, *, samples: int = 64, length: int = 2048, seed: int = 0
) -> Tensor:
    """How much attention each KV head gives to the needle at the positions that say it.

    Args:
        model: not attached. It reads single needles of `tasks` with the answer given, one sample at a time; attention
            weights of a layer, (H, T, T), are in memory at once.
        length: tokens of a prompt.

    Returns:
        (L, G) float32 in [0, 1]: mean over samples, answer tokens and the query heads of a KV head. Layers that cannot
        be routed are 0.

    Raises:
        ElasticAttentionError: the tokenizer writes the needle's number in the text otherwise than in the answer.
    """
    from rich.progress import track

    total, counted = torch.zeros(0), 0
    writer = with_marks(tokenizer)  # base models know no conversation
    for index in track(range(samples), "ranking heads", transient=True):
        sample = generate("needle", seed=seed, index=index, target_tokens=length, corpora=corpora, tokenizer=writer)
        prompt, answer = render(sample, writer)
        place = find_needle(prompt, answer)
        if place is not None:
            mass = measure_mass(model, [*prompt, *answer[:-1]], len(prompt) - 1, range(place, place + len(answer)))
            total, counted = (mass + total if counted else mass), counted + 1
    if not counted:
        raise ElasticAttentionError(
            f"{type(tokenizer).__name__} writes none of {samples} needles as it writes the answers; no head can be "
            "ranked with it."
        )
    return total / counted


def find_needle(prompt: Sequence[int], answer: Sequence[int]) -> int | None:
    """Where the answer's tokens stand in the prompt; None if nowhere."""
    size = len(answer)
    return next((i for i in range(len(prompt) - size + 1) if list(prompt[i : i + size]) == list(answer)), None)


@torch.no_grad()
def measure_mass(model: Any, ids: Sequence[int], first_row: int, needle: range) -> Tensor:
    """(L, G) float32: attention on the needle's positions, mean over the rows from `first_row` on."""
    modules = find_attention_modules(model)
    heads: dict[int, Tensor] = {}

    def keep(index: int, weights: Tensor) -> None:
        mass = weights[0, :, first_row:, needle.start : needle.stop].float().sum(-1).mean(-1)
        heads[index] = mass.unflatten(0, (-1, modules[index].num_key_value_groups)).mean(1).cpu()

    with _eager_attention(model), contextlib.ExitStack() as stack:
        for index, module in modules.items():
            hook = module.register_forward_hook(lambda _, args, output, index=index: keep(index, output[1]))
            stack.callback(hook.remove)
        model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, logits_to_keep=1)
    mass = torch.zeros(model.config.get_text_config().num_hidden_layers, len(next(iter(heads.values()))))
    for index, values in heads.items():
        mass[index] = values
    return mass


def save_retrieval_mask(
    folder: str | Path, model: Any, scores: Tensor, *, msr: float, pattern: StreamingConfig, facts: dict[str, Any]
) -> Tensor:
    """Keep the heads with most attention on needles full, and write the mask for the method "retrieval_heads".

    Args:
        scores: of `rank_retrieval_heads`.
        msr: share of the heads that stream.
        pattern: what they read.
        facts: where the scores come from.

    Returns:
        (L, G) bool, True = sparse.
    """
    layers = list(find_attention_modules(model))
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask[layers] = mark_sparsest(-scores[layers], msr)
    facts = facts | {"kind": "retrieval_heads", "msr": msr, "sparse_pattern": to_dict(pattern)}
    save_static_routes(folder, mask, {"retrieval_scores": scores}, facts)
    return mask


@contextlib.contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Inside, attention gives its weights away."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
