"""From which token on a sequence may be read sparsely, and when its routes are decided.

Keys of a prompt that are computed densely do not depend on its routes; so under "deferred" the blocks of prompts can be
cut into chunks and shared between requests as an engine likes, exactly.
"""

from dataclasses import dataclass
from typing import Any

from ..config import ElasticConfig, StreamingConfig
from ..errors import UnsupportedModel
from ..models.budget import check_budget
from ..settings import from_dict
from .requests import RouteRequest

POLICIES = ("deferred", "first_chunk", "probe")
NEVER = 1 << 31


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """Settings of a serving engine.

    Attributes:
        routers: adapter folder or hub id; None = the routers that ship with the package for this model.
        policy: when a prompt's routes are decided: "deferred" (at its end), "first_chunk" (from its first
            `first_chunk_tokens` tokens, sparse from there on), "probe" (from a short pass over its first and last
            tokens before everything else, sparse from the first token on).
        first_chunk_tokens: N of "first_chunk".
        budget: added to every sparse logit where a request names none.

    Raises:
        ValueError: an unknown policy, or a size that is not positive, or a budget that is no number.
    """

    routers: str | None = None
    policy: str = "deferred"
    first_chunk_tokens: int = 2048
    budget: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r} is unknown; use one of {list(POLICIES)}.")
        if self.first_chunk_tokens < 1:
            raise ValueError(f"first_chunk_tokens={self.first_chunk_tokens} must be at least 1.")
        check_budget(self.budget)

    @classmethod
    def read(cls, data: Any) -> "ServingConfig":
        """The settings in plain JSON data; unknown keys are a ValueError."""
        return from_dict(cls, data)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutePlan:
    """What happens to one sequence, in tokens of it.

    Attributes:
        decide_at: the routers decide once this many prompt tokens are there, from the first and last of them; None =
            they never do.
        sparse_from: queries at this position and later follow the routes, earlier ones read everything.
    """

    decide_at: int | None
    sparse_from: int


DENSE = RoutePlan(decide_at=None, sparse_from=NEVER)


def plan_routes(request: RouteRequest, serving: ServingConfig, config: ElasticConfig, prompt_tokens: int) -> RoutePlan:
    """The plan of a sequence. A prompt no longer than sink and window stays dense unless its routes are given."""
    if request.routes is not None:
        return DENSE if request.is_dense else RoutePlan(decide_at=None, sparse_from=0)
    if prompt_tokens <= dense_tokens(config):
        return DENSE
    if serving.policy == "probe":
        return RoutePlan(decide_at=None, sparse_from=0)
    end = min(prompt_tokens, serving.first_chunk_tokens) if serving.policy == "first_chunk" else prompt_tokens
    return RoutePlan(decide_at=end, sparse_from=end)


def dense_tokens(config: ElasticConfig) -> int:
    """A sequence of up to this many tokens reads everything all the same."""
    pattern = streaming(config)
    return pattern.num_sink_tokens + pattern.local_window


def streaming(config: ElasticConfig) -> StreamingConfig:
    """The pattern of sparse heads, which an engine with pages must be able to express as pages.

    Raises:
        UnsupportedModel: the adapter uses another pattern, or XAttention for full heads.
    """
    if not isinstance(config.sparse_pattern, StreamingConfig) or config.full_pattern != "full":
        raise UnsupportedModel(
            f"vLLM serves heads that are full or stream, this adapter has sparse_pattern={config.sparse_pattern!r} and "
            f"full_pattern={config.full_pattern!r}; serve it with `elastic-attn serve --engine transformers`."
        )
    return config.sparse_pattern


def check_serving(serving: ServingConfig, config: ElasticConfig) -> None:
    """Do the settings fit the adapter?

    Raises:
        ValueError: `first_chunk_tokens` is no longer than what every head reads anyway.
        UnsupportedModel: see `streaming`.
    """
    needed = dense_tokens(config)
    if serving.policy == "first_chunk" and serving.first_chunk_tokens <= needed:
        raise ValueError(
            f"first_chunk_tokens={serving.first_chunk_tokens} must be more than sink and window, {needed} tokens."
        )
