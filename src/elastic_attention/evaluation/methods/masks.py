"""Methods with one mask for all inputs: PruLong, DuoAttention, the ranking of retrieval heads.

Their folders come from the trainer, from `elastic-attn convert` or from `retrieval_heads`; each brings the pattern that
it was made for.
"""

from typing import Any

from ...config import ElasticConfig
from .base import MethodKind

# What the trainer's recipes call the methods that converted masks name themselves.
_SOURCES = {"hard_concrete": "prulong", "alpha": "duo_attention"}


def find_origin(facts: dict[str, Any]) -> str | None:
    """Which method a mask says it is of; None if it does not say."""
    recipe = facts.get("recipe") or {}
    kind = facts.get("kind") or _SOURCES.get((recipe.get("routes") or {}).get("source", ""))
    return None if kind in (None, "table") else str(kind)


def _make(summary: str, *names: str) -> MethodKind:
    def fits(config: ElasticConfig) -> bool:
        return not names or find_origin(config.training) in (None, *names)

    return MethodKind(summary=summary, needs="mask", fits=fits)


STATIC = _make("one mask for all inputs, wherever it comes from")
PRULONG = _make("PruLong: hard concrete gates, beta 2/3, stretch [-0.1, 1.1], cut at its target", "prulong")
DUO_ATTENTION = _make("DuoAttention: blend weights, 0.05 mean |alpha|, cut by quantile", "duo_attention")
RETRIEVAL_HEADS = _make("the heads with most attention on needles stay full", "retrieval_heads")
