"""XAttention on all heads (arXiv 2503.16428): blocks of 128, stride 16, threshold 0.9; decoding is dense."""

from ...config import XAttentionConfig
from .base import MethodKind, choose_all

XATTENTION = MethodKind(
    summary="XAttention on all heads: blocks of 128, stride 16, threshold 0.9",
    decode="full",
    pattern=XAttentionConfig(block_size=128, stride=16, threshold=0.9),
    choose=choose_all,
)
