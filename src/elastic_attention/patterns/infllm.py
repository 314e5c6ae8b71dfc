"""InfLLM-V2 (arXiv 2509.24663): a sink, a window, and the blocks that hold the most attention on pooled keys."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .token_choice import TokenChoice, mark_best


@dataclass(frozen=True, kw_only=True, slots=True)
class InfllmConfig:
    """Sizes of InfLLM-V2; the defaults are those of MiniCPM4.

    Attributes:
        block_size: tokens of a key block.
        local_window: latest tokens, in whole blocks, that every query reads.
        num_blocks: blocks that a query chooses outside of the window, sink blocks among them.
        num_sink_blocks: blocks at the start that are always chosen.
        pooled_tokens, pooling_stride: pooled keys are means over so many tokens, so many tokens apart.
        dense_tokens: shorter sequences are dense.
    """

    block_size: int = 64
    local_window: int = 2048
    num_blocks: int = 64
    num_sink_blocks: int = 1
    pooled_tokens: int = 32
    pooling_stride: int = 16
    dense_tokens: int = 8192
    kind: str = field(default="infllm", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.local_window < self.block_size or self.local_window % self.block_size:
            raise ValueError(
                f"local_window={self.local_window} must be a positive multiple of block_size={self.block_size}."
            )
        if self.pooling_stride < 1 or self.pooled_tokens % self.pooling_stride or self.block_size % self.pooling_stride:
            raise ValueError(
                f"pooling_stride={self.pooling_stride} must divide pooled_tokens={self.pooled_tokens} and "
                f"block_size={self.block_size}."
            )
        if not 0 <= self.num_sink_blocks <= self.num_blocks:
            raise ValueError(f"num_sink_blocks={self.num_sink_blocks} must lie in [0, {self.num_blocks}].")
        if self.dense_tokens < self.pooled_tokens:
            raise ValueError(f"dense_tokens={self.dense_tokens} must be at least pooled_tokens={self.pooled_tokens}.")


class InfllmPattern(TokenChoice):
    """Softmax over pooled keys, added up over the query heads of a KV head, the largest value of
    each block; the best blocks before the window are read by all heads of the group.
    """

    name = "infllm"

    def __init__(self, config: InfllmConfig) -> None:
        self.config = config
        self.block_size, self.dense_tokens = config.block_size, config.dense_tokens
        self.num_local_blocks = config.local_window // config.block_size
        self.most_blocks = self.num_local_blocks - 1 + config.num_blocks

    def choose_blocks(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """(H, T, N) bool, equal over the query heads of a KV head; scores are float32."""
        positions = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)
        mass = self._score_pooled_keys(q, k, positions, scale)
        num_blocks = -(-k.shape[1] // self.block_size)
        scores = self._take_largest(mass, num_blocks)
        blocks, own = torch.arange(num_blocks, device=q.device), positions[:, None] // self.block_size
        is_local = (blocks <= own) & (blocks > own - self.num_local_blocks)
        scores = scores.masked_fill(blocks < self.config.num_sink_blocks, float("inf"))
        scores = scores.masked_fill(is_local | (blocks > own), float("-inf"))
        chosen = mark_best(scores, self.config.num_blocks) | is_local
        return chosen.repeat_interleave(len(q) // len(k), dim=0)

    def _score_pooled_keys(self, q: Tensor, k: Tensor, positions: Tensor, scale: float) -> Tensor:
        """(G, T, P): attention mass on every pooled key that ends before the query, over the heads of the group."""
        width, stride = self.config.pooled_tokens, self.config.pooling_stride
        pooled = k.float().unfold(1, width, stride).mean(-1)
        last = torch.arange(pooled.shape[1], device=k.device) * stride + width - 1
        scores = torch.einsum("gptd,gnd->gptn", q.float().unflatten(0, (len(k), -1)), pooled) * scale
        scores = scores.masked_fill(last > positions[:, None], float("-inf"))
        return scores.softmax(3).nan_to_num(0.0).sum(1)  # the first queries see no pooled key

    def _take_largest(self, mass: Tensor, num_blocks: int) -> Tensor:
        """(G, T, N): the largest mass of the pooled keys that reach into a block."""
        step = self.block_size // self.config.pooling_stride
        missing = num_blocks * step - mass.shape[2]
        padded = torch.nn.functional.pad(mass, (1, missing), value=0.0)
        return padded.unfold(2, step + 1, step).amax(3)
