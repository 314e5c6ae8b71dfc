"""Methods with trained routers; the adapter says what its heads read."""

from ...config import ElasticConfig, StreamingConfig, TriangleConfig, XAttentionConfig
from .base import MethodKind


def _is_of(sparse: type, full: type | None, granularity: str, config: ElasticConfig) -> bool:
    has_full = config.full_pattern == "full" if full is None else isinstance(config.full_pattern, full)
    return isinstance(config.sparse_pattern, sparse) and has_full and config.granularity == granularity


def _make(summary: str, sparse: type, full: type | None = None, granularity: str = "head") -> MethodKind:
    return MethodKind(
        summary=summary,
        needs="adapter",
        fits=lambda config: _is_of(sparse, full, granularity, config),
        # Heads that choose blocks of a prompt read every key while decoding.
        decode="full" if sparse is XAttentionConfig else None,
    )


ROUTED = MethodKind(summary="trained routers, whatever their pattern")
FA_SSA = _make("Elastic Attention, head routers: all keys or sink and window", StreamingConfig)
FA_XA = _make("Elastic Attention, head routers: all keys or XAttention", XAttentionConfig)
XA_SSA = _make("Elastic Attention, head routers: XAttention or sink and window", StreamingConfig, XAttentionConfig)
FA_TA = _make("Elastic Attention, head routers: all keys or triangle", TriangleConfig)
FLUX = _make("Flux Attention, layer routers: all keys or sink and window", StreamingConfig, granularity="layer")
FLUX_TA = _make("Flux Attention, layer routers: all keys or triangle", TriangleConfig, granularity="layer")
