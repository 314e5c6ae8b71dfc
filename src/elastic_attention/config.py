"""Strict, frozen configurations that convert to and from dictionaries, JSON and TOML."""

import dataclasses
import json
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

FORMAT_VERSION = 1


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
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}.")
        for name in ("num_sink_tokens", "local_window"):
            value = getattr(self, name)
            if value < self.block_size or value % self.block_size:
                raise ValueError(
                    f"{name}={value} must be a positive multiple of block_size={self.block_size}; "
                    f"use {max(1, round(value / self.block_size)) * self.block_size}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """Sizes of one layer's Attention Router (Elastic Attention, section 3.1).

    Attributes:
        head_dim: width d of a key.
        task_hidden, task_width: task MLP, d -> task_hidden -> task_width.
        router_hidden, router_width: router MLP, task_width -> router_hidden -> router_width -> 2.
        pooled_tokens: n; keys of the first n and last n prompt tokens are averaged.
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
    def for_head_dim(cls, head_dim: int, **overrides: Any) -> "RouterConfig":
        """The paper's widths (4d, d / 4d, d) for keys of width d = `head_dim`."""
        sizes = dict(task_hidden=4 * head_dim, task_width=head_dim, router_hidden=4 * head_dim, router_width=head_dim)
        return cls(head_dim=head_dim, **(sizes | overrides))


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
        full_pattern: what a full head reads; "full" is all keys.
        granularity: "head": one decision per KV head.
        training: facts about the training run, free form.
        format_version: version of the adapter format.
    """

    base_model: BaseModel
    routed_layers: tuple[int, ...]
    router: RouterConfig
    sparse_pattern: StreamingConfig
    full_pattern: str = "full"
    granularity: str = "head"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version={self.format_version} is unknown; this version reads {FORMAT_VERSION}. "
                "Upgrade elastic-attention or save the adapter again."
            )
        if self.granularity != "head":
            raise ValueError(f"granularity={self.granularity!r} is unknown; use 'head'.")
        if self.full_pattern != "full":
            raise ValueError(f"full_pattern={self.full_pattern!r} is unknown; use 'full'.")
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
        granularity: str = "head",
        **router: Any,
    ) -> "ElasticConfig":
        """Configuration with untrained routers for a transformers model.

        The sparse pattern follows the model's context length: up to 8K tokens block 64, sink 64, window 512;
        up to 32K 128 / 128 / 1,024; longer 128 / 128 / 2,048.

        Args:
            model: a PreTrainedModel or PeftModel; only its shape is read.
            num_sink_tokens, local_window, block_size: override the pattern, in tokens.
            granularity: "head".
            router: overrides of `RouterConfig`, such as pooled_tokens.

        Raises:
            UnsupportedModel: no layer of the model can be routed.
            ValueError: a size is no multiple of the block.
        """
        from .models.families import describe_model

        base, routed, context = describe_model(model)
        block, sink, window = (64, 64, 512) if context <= 8192 else (128, 128, 1024 if context <= 32768 else 2048)
        block = block if block_size is None else block_size
        return cls(
            base_model=base,
            routed_layers=routed,
            router=RouterConfig.for_head_dim(base.head_dim, **router),
            sparse_pattern=StreamingConfig(
                num_sink_tokens=max(sink, block) if num_sink_tokens is None else num_sink_tokens,
                local_window=window if local_window is None else local_window,
                block_size=block,
            ),
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
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"{where} has unknown keys {unknown}; known keys are {sorted(fields)}.")
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
        raise ValueError(f"{where} must be {getattr(expected, '__name__', expected)}, got {value!r}.")
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ValueError: the file is no valid TOML; names the file and the line.
        FileNotFoundError: there is no such file.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid TOML: {error}") from error
