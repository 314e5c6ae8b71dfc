"""Strict, frozen configurations that convert to and from dictionaries, JSON and TOML."""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

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

    def __post_init__(self) -> None:
        _check_blocks(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TriangleConfig:
    """Triangle attention (TA): streaming, but the last queries of the prompt read everything.

    Attributes:
        num_sink_tokens, local_window, block_size: as in `StreamingConfig`.
        num_last_queries: queries at the end of the prompt that read every key before them.

    Raises:
        ValueError: a size is not positive or no multiple of `block_size`.
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
        block_size: tokens of a query block and of a key block.
        stride: tokens of an antidiagonal; scores are sums over one query and one key of every offset in a stride.
        threshold: share of the mass that is kept, in (0, 1].
        density: instead of the threshold, this share of the causal blocks in every row, in (0, 1]. For benchmarks.

    Raises:
        ValueError: the block is no multiple of the stride, or a share lies outside of (0, 1].
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
_KINDS: dict[str, type] = {"streaming": StreamingConfig, "xattention": XAttentionConfig, "triangle": TriangleConfig}


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
        init_std: standard deviation of freshly initialised weights.
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
        format_version: version of the adapter format.
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


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build the configuration class `cls` from `data`; strict.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the message names the key.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a table of keys, got {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        near = {name: difflib.get_close_matches(name, fields, 1) for name in unknown}
        advice = [f" Did you mean {match[0]!r} instead of {name!r}?" for name, match in near.items() if match]
        raise ValueError(f"{where} has unknown keys {unknown}; known keys are {sorted(fields)}.{''.join(advice)}")
    required = {
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise ValueError(f"{where} misses the keys {missing}; add them.")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if patterns := {kind: cls for kind, cls in _KINDS.items() if cls in args}:
            if isinstance(value, dict):
                return _convert_pattern(patterns, value, where)
            args = tuple(a for a in args if a not in patterns.values()) or args
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        name = "list" if expected is tuple else getattr(expected, "__name__", expected)  # as files write it
        raise ValueError(f"{where} must be {name}, got {value!r}.")
    return value


def _convert_pattern(patterns: dict[str, type], value: dict[str, Any], where: str) -> Any:
    """The key "kind" names the class; files from before there was a choice have none and mean the first."""
    kind = value.get("kind", next(iter(patterns)))
    if kind not in list(patterns):  # whatever a file says may not even have a hash
        raise ValueError(f"{where}.kind={kind!r} is unknown here; use one of {sorted(patterns)}.")
    return from_dict(patterns[kind], {name: item for name, item in value.items() if name != "kind"}, where)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ValueError: the file is no valid TOML; names the file and the line.
        FileNotFoundError: there is no such file.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid TOML: {error}. Correct that line, or name a .toml file.") from error
