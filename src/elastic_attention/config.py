"""Strict, frozen configurations of patterns, routers and adapters; `settings` reads and writes them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

FORMAT_VERSION = 1
GRANULARITIES = ("head", "layer")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamingConfig:
    """Block-granular streaming attention (SSA): a sink and a local window, in tokens.

    A query at position p reads key j if j <= p and (j // block_size < num_sink_tokens / block_size or
    j // block_size > p // block_size - local_window / block_size).

    Raises:
        ValueError: a size is not positive or no multiple of `block_size`.
    """

    num_sink_tokens: int = 128
    local_window: int = 2048
    block_size: int = 128
    # Read, and not written: adapters from before there was a choice have no kind.
    kind: ClassVar[str] = "streaming"

    def __post_init__(self) -> None:
        _check_blocks(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TriangleConfig:
    """Triangle attention (TA): streaming, but the last queries of the prompt read everything.

    Attributes:
        num_sink_tokens, local_window, block_size: as in `StreamingConfig`.
        num_last_queries: queries at the end of the prompt that read every key before them.

    Raises:
        ValueError: a size is not positive or no multiple of `block_size`, or there are no last queries.
    """

    num_sink_tokens: int = 128
    local_window: int = 2048
    block_size: int = 128
    num_last_queries: int = 128
    kind: str = dataclasses.field(default="triangle", init=False, repr=False)

    def __post_init__(self) -> None:
        _check_blocks(self)
        if self.num_last_queries < 1:
            raise ValueError(f"num_last_queries must be at least 1, got {self.num_last_queries}.")

    @property
    def streaming(self) -> StreamingConfig:
        """What all queries but the last ones of the prompt read."""
        return StreamingConfig(
            num_sink_tokens=self.num_sink_tokens, local_window=self.local_window, block_size=self.block_size
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class XAttentionConfig:
    """XAttention (XA): per query block the fewest key blocks whose share of the score mass reaches a threshold.

    Attributes:
        block_size: tokens of a query block and of a key block, a power of two up to 128.
        stride: tokens of an antidiagonal, a power of two up to 16; scores are sums over one query and one key of every
            offset in a stride.
        threshold: share of the mass that is kept, in (0, 1].
        density: instead of the threshold, this share of the causal blocks in every row, in (0, 1]. For benchmarks.

    Raises:
        ValueError: no power of two in its range, a block smaller than the stride, or a share outside of (0, 1].
    """

    block_size: int = 128
    stride: int = 16
    threshold: float = 0.9
    density: float | None = None
    kind: str = dataclasses.field(default="xattention", init=False, repr=False)

    def __post_init__(self) -> None:
        for name, largest in (("block_size", 128), ("stride", 16)):
            value = getattr(self, name)
            if not 1 <= value <= largest or value & (value - 1):
                raise ValueError(f"{name} must be a power of two up to {largest}, got {value}.")
        if self.stride > self.block_size:
            raise ValueError(f"stride={self.stride} must divide block_size={self.block_size}.")
        for name in ("threshold", "density"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share <= 1.0:
                raise ValueError(f"{name} must lie in (0, 1], got {share}.")


SparsePattern = StreamingConfig | XAttentionConfig | TriangleConfig


def _check_blocks(config: StreamingConfig | TriangleConfig) -> None:
    block = config.block_size
    if block < 1:
        raise ValueError(f"block_size must be at least 1, got {block}.")
    for name in ("num_sink_tokens", "local_window"):
        value = getattr(config, name)
        if value < block or value % block:
            raise ValueError(
                f"{name}={value} must be a positive multiple of block_size={block}; "
                f"use {max(1, round(value / block)) * block}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """Sizes of one layer's router (Elastic Attention, section 3.1; Flux Attention, section 3).

    Attributes:
        head_dim: width d of a key or query.
        task_hidden, task_width: task MLP, d -> task_hidden -> task_width.
        router_hidden, router_width: router MLP, task_width -> router_hidden -> router_width -> 2.
        pooled_tokens: n; keys (layer routers: queries) of the first n and last n prompt tokens are averaged.
        count_overlap_twice: prompts shorter than 2n count their overlap twice, as the released code does.
        init_std: standard deviation of freshly initialised weights. ValueError: a size is less than 1.
    """

    head_dim: int
    task_hidden: int
    task_width: int
    router_hidden: int
    router_width: int
    pooled_tokens: int = 100
    count_overlap_twice: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if item.type is int and getattr(self, item.name) < 1:
                raise ValueError(f"{item.name} must be at least 1, got {getattr(self, item.name)}.")

    @classmethod
    def for_head_dim(cls, head_dim: int, *, granularity: str = "head", **overrides: Any) -> "RouterConfig":
        """The papers' widths for keys or queries of width d = `head_dim`: (4d, d / 4d, d), layer: (8d, 2d / 4d, d).

        Raises:
            ValueError: an unknown granularity.
        """
        _check_granularity(granularity)
        scale = 2 if granularity == "layer" else 1
        task = dict(task_hidden=4 * scale * head_dim, task_width=scale * head_dim)
        return cls(head_dim=head_dim, **(task | dict(router_hidden=4 * head_dim, router_width=head_dim) | overrides))


def _check_granularity(granularity: str) -> None:
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r} is unknown; use 'head' or 'layer'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """The model that routers belong to, as far as it decides whether they fit."""

    name: str | None
    revision: str | None
    model_type: str
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ElasticConfig:
    """Everything an adapter folder says besides the weights.

    Attributes:
        base_model: shape and name of the model.
        routed_layers: indices of the layers that carry a router.
        router: router sizes.
        sparse_pattern: what a sparse head reads.
        full_pattern: what a full head reads; "full" is all keys. XAttention needs a streaming sparse pattern.
        granularity: "head": one decision per KV head, from its keys; "layer": one per layer, from its queries.
        training: facts about the training run, free form.
        format_version: version of the adapter format. ValueError: values that are unknown or do not go together.
    """

    base_model: BaseModel
    routed_layers: tuple[int, ...]
    router: RouterConfig
    sparse_pattern: SparsePattern
    full_pattern: str | XAttentionConfig = "full"
    granularity: str = "head"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version={self.format_version} is unknown; this version reads {FORMAT_VERSION}. "
                "Upgrade elastic-attention or save the adapter again."
            )
        _check_granularity(self.granularity)
        if isinstance(self.full_pattern, str) and self.full_pattern != "full":
            raise ValueError(f"full_pattern={self.full_pattern!r} is unknown; use 'full' or an XAttentionConfig.")
        if self.full_pattern != "full" and not isinstance(self.sparse_pattern, StreamingConfig):
            raise ValueError(
                f"full_pattern={self.full_pattern!r} needs a StreamingConfig as sparse_pattern, got "
                f"{self.sparse_pattern!r}; use full_pattern='full'."
            )
        wrong = [i for i in self.routed_layers if not 0 <= i < self.base_model.num_layers]
        if wrong or not self.routed_layers:
            raise ValueError(
                f"routed_layers={list(self.routed_layers)} must name layers of the model, {wrong} are not."
            )

    @classmethod
    def for_model(
        cls,
        model: Any,
        *,
        num_sink_tokens: int | None = None,
        local_window: int | None = None,
        block_size: int | None = None,
        sparse_pattern: SparsePattern | None = None,
        full_pattern: str | XAttentionConfig = "full",
        granularity: str = "head",
        **router: Any,
    ) -> "ElasticConfig":
        """Configuration with untrained routers for a transformers model.

        The sparse pattern follows the model's context length: up to 8K tokens block 64, sink 64, window 512;
        up to 32K 128 / 128 / 1,024; longer 128 / 128 / 2,048.

        Args:
            model: a PreTrainedModel or PeftModel; only its shape is read.
            num_sink_tokens, local_window, block_size: override the streaming pattern, in tokens.
            sparse_pattern: what sparse heads read instead, not together with these sizes.
            full_pattern: what full heads read, "full" or an XAttentionConfig.
            granularity: "head" (Elastic Attention) or "layer" (Flux Attention: all heads of a layer agree).
            router: overrides of `RouterConfig`, such as pooled_tokens.

        Raises:
            UnsupportedModel: no layer of the model can be routed.
            ValueError: a size is no multiple of the block, or sizes and a pattern were given.
        """
        from .models.families import describe_model

        base, routed, context = describe_model(model)
        block, sink, window = (64, 64, 512) if context <= 8192 else (128, 128, 1024 if context <= 32768 else 2048)
        block = block if block_size is None else block_size
        sizes = (num_sink_tokens, local_window, block_size)
        if sparse_pattern is not None and any(size is not None for size in sizes):
            raise ValueError(f"sparse_pattern={sparse_pattern!r} has its own sizes; pass it or the sizes {sizes}.")
        streaming = StreamingConfig(
            num_sink_tokens=max(sink, block) if num_sink_tokens is None else num_sink_tokens,
            local_window=window if local_window is None else local_window,
            block_size=block,
        )
        return cls(
            base_model=base,
            routed_layers=routed,
            router=RouterConfig.for_head_dim(base.head_dim, granularity=granularity, **router),
            sparse_pattern=streaming if sparse_pattern is None else sparse_pattern,
            full_pattern=full_pattern,
            granularity=granularity,
        )
