"""The three verbs: hybrid (inference), blended (training), decode. Validate, plan, choose a backend, call."""

from .blended import blended_attention
from .decode import decode_attention
from .hybrid import hybrid_attention

__all__ = ["blended_attention", "decode_attention", "hybrid_attention"]
