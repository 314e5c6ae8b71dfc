"""Deciding the routes of one layer for one forward pass: who is ready, what applies now, what applies later."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import ElasticConfig, StreamingConfig
from ..patterns import build_pattern
from ..router import BoundaryPool, average_heads, count_ends, select_boundary, select_ends
from ..types import HeadRoutes, stage
from .cache_layer import ElasticLayer
from .families import count_kv_heads, keys_before_rope, queries_before_rope
from .tokens import Tokens

RouteSource = Callable[[int, Tensor], Tensor]
"""(layer index, pooled states float32) -> routes (B, G) or (B, 1), bool or float, True or 1 = sparse.

The states are mean keys (B, G, D), or the mean query (B, 1, D) where the configuration says granularity="layer". Routes
(B, 1) count for every KV head.
"""

KeyRouter = Callable[[int, Tensor, Tensor], Tensor]
"""(layer index, keys before RoPE (B, m, G, D), how often each counts (B, m)) -> routes (B, G) bool; one launch."""

POLICIES = ("deferred", "first_chunk", "probe")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerStep:
    """What one layer's attention must do in this forward; travels as a keyword argument.

    Attributes:
        layer: cache layer, None without a cache.
        now: (B, G) routes in effect for this forward's queries.
        after: (B, G) routes from the next forward on.
        prompt_lengths: (B,) int on the model's device, real prompt tokens where rows of answers follow; else None.
        is_decided: by sequence, False while it is too short to be routed.
    """

    tokens: Tokens
    layer: ElasticLayer | None
    now: HeadRoutes
    after: HeadRoutes
    prompt_lengths: Tensor | None = None
    is_decided: list[bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingRules:
    """Everything besides the tokens that decides routes.

    Attributes:
        source: the routers, or what stands in for them.
        route_keys: the routers as a kernel that pools by itself, where there is one.
        forced: (L, G) or (B, L, G) bool given routes, or None.
        is_sampling: `source` gives float routes for training.
        prompt_lengths: (B,) int, real prompt tokens of each sequence when prompt and answer come in one forward.
        policy: what a chunked prefill does.
        first_chunk_tokens: N of the policy "first_chunk".
        reroute_on_append: later prompts may turn full heads into sparse ones.
        memory: what the layers of a forward share.
    """

    config: ElasticConfig
    source: RouteSource
    route_keys: KeyRouter | None
    forced: Tensor | None
    is_sampling: bool
    prompt_lengths: Tensor | None
    policy: str
    first_chunk_tokens: int
    reroute_on_append: bool
    memory: dict[str, Any]


def plan_layer(
    rules: RoutingRules, index: int, module: Any, hidden: Tensor, tokens: Tokens, layer: ElasticLayer | None
) -> LayerStep:
    """Decide the routes of layer `index`; hidden (B, T, hidden), packed (1, T, hidden), is its attention's input."""
    step = _decide(rules, index, module, hidden, tokens, layer)
    is_streaming = isinstance(rules.config.sparse_pattern, StreamingConfig) and rules.config.full_pattern == "full"
    if is_streaming:  # treats answers like prompts
        return step
    lengths = rules.prompt_lengths
    if lengths is None and tokens.prompt_columns < tokens.num_columns and not any(tokens.before):
        lengths = torch.tensor([b + p for b, p in zip(tokens.before, tokens.prompt_counts, strict=True)])
    return step if lengths is None else dataclasses.replace(step, prompt_lengths=stage(lengths, hidden.device))


def _decide(
    rules: RoutingRules, index: int, module: Any, hidden: Tensor, tokens: Tokens, layer: ElasticLayer | None
) -> LayerStep:
    batch, heads = len(tokens.counts), count_kv_heads(module)
    is_new = not any(tokens.before) and (layer is None or layer.columns == 0)
    if is_new and rules.forced is not None:
        forced = HeadRoutes(_expand_forced(rules.forced, index, batch))
        if layer is not None:
            layer.is_decided, layer.pool = [True] * batch, None
        return LayerStep(tokens=tokens, layer=layer, now=forced, after=forced, is_decided=[True] * batch)
    if rules.is_sampling and layer is not None:
        raise ValueError("Sampled routes need the whole sequence in one forward without a cache; pass use_cache=False.")
    if layer is None:
        lengths = tokens.prompt_counts
        if rules.prompt_lengths is not None and not rules.is_sampling:
            lengths = rules.prompt_lengths.tolist()
        is_long = [_is_long(rules, n) for n in lengths]
        values = _route_once(rules, index, module, hidden, tokens, heads)
        routes = HeadRoutes(values if rules.is_sampling else _keep_rows(values.bool(), is_long))
        return LayerStep(tokens=tokens, layer=None, now=routes, after=routes, is_decided=is_long)
    if is_new:
        layer.is_decided = [False] * batch
        current = HeadRoutes(torch.zeros(batch, heads, dtype=torch.bool))
    else:
        current = layer.store.routes
    unchanged = LayerStep(tokens=tokens, layer=layer, now=current, after=current, is_decided=layer.is_decided)
    if layer.pool is None:
        return unchanged
    is_whole = is_new and _is_whole_prompt(rules, tokens)
    if not is_whole:
        layer.commit_pool()
        _update_pool(rules, module, hidden, tokens, layer)
    ready = [_is_ready(rules, tokens, b, layer.is_decided[b]) for b in range(batch)]
    was_waiting, layer.is_waiting = layer.is_waiting, bool(tokens.prompt_columns) and not tokens.completes_prompt
    if not any(ready):
        return unchanged
    if is_whole:
        values = _route_ends(rules, index, module, hidden, tokens, heads)
    else:
        values = _ask_source(rules, index, _mean(rules, layer.pool), heads)
    chosen = _keep_rows(values.bool(), ready)
    after = HeadRoutes(chosen if is_new else chosen | current.on(chosen.device))
    layer.is_decided = [d or r for d, r in zip(layer.is_decided, ready, strict=True)]
    if all(layer.is_decided) and not rules.reroute_on_append:
        layer.pool = None
    # The chunk that decides stays dense under "first_chunk", so that its keys do not depend on the chunk size.
    is_deferred = rules.policy == "first_chunk" or (rules.policy == "deferred" and was_waiting)
    now = current if is_deferred else after
    return LayerStep(tokens=tokens, layer=layer, now=now, after=after, is_decided=layer.is_decided)


def _keep_rows(routes: Tensor, is_kept: list[bool]) -> Tensor:
    """Routes (B, G) of the rows that are kept, full heads in the others."""
    return routes if all(is_kept) else routes & stage(is_kept, routes.device)[:, None]


def _expand_forced(forced: Tensor, index: int, batch: int) -> Tensor:
    if forced.ndim == 2:
        return forced[index].expand(batch, -1)
    if batch % len(forced):
        raise ValueError(
            f"set_routes got routes for {len(forced)} prompts, but the model sees {batch} rows; pass one (L, G) entry "
            "a prompt (beams and returned sequences repeat it)."
        )
    return forced[:, index].repeat_interleave(batch // len(forced), dim=0)


def _is_ready(rules: RoutingRules, tokens: Tokens, b: int, is_decided: bool) -> bool:
    """Is the route of sequence b decided in this forward?"""
    prompt = tokens.prompt_counts[b]
    if prompt == 0 or (is_decided and not rules.reroute_on_append):
        return False
    seen = tokens.before[b] + prompt
    if not _is_long(rules, seen):
        return False
    return tokens.completes_prompt or (rules.policy == "first_chunk" and seen >= rules.first_chunk_tokens)


def _is_long(rules: RoutingRules, num_tokens: int) -> bool:
    """Is a sequence so long that routes make a difference?"""
    return num_tokens > build_pattern(rules.config.sparse_pattern).dense_tokens


def _route_once(rules: RoutingRules, index: int, module: Any, hidden: Tensor, tokens: Tokens, heads: int) -> Tensor:
    """What the source says about a forward without a cache."""
    if tokens.is_packed or _is_whole_prompt(rules, tokens):
        return _route_ends(rules, index, module, hidden, tokens, heads)
    pool = BoundaryPool(rules.config.router.pooled_tokens)
    before = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    real = _limit(rules, tokens.real_mask(len(hidden), hidden.device), before)
    pool.update(*_boundary_states(rules, module, hidden, real, before))
    return _ask_source(rules, index, _mean(rules, pool), heads)


def _is_whole_prompt(rules: RoutingRules, tokens: Tokens) -> bool:
    """Is the forward whole prompts that are all routed, without holes? Then no token needs to be searched."""
    return (
        (tokens.real is None or tokens.spans is not None)
        and tokens.completes_prompt
        and tokens.prompt_columns == tokens.num_columns
        and rules.prompt_lengths is None
        and rules.policy != "first_chunk"
        and not rules.reroute_on_append
        and _is_long(rules, min(tokens.prompt_counts))
    )


def _route_ends(rules: RoutingRules, index: int, module: Any, hidden: Tensor, tokens: Tokens, heads: int) -> Tensor:
    """Routes from the first n and the last n tokens of each sequence."""
    n = rules.config.router.pooled_tokens
    if tokens.has_spans or tokens.num_columns < 2 * n:
        places, counts = _find_ends(rules, tokens, hidden)
        if tokens.exchange is None:
            chosen = hidden.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)
        else:
            chosen = tokens.exchange.take(hidden, places)
    else:
        chosen = torch.cat([hidden[:, :n], hidden[:, -n:]], dim=1)
        counts = torch.ones(chosen.shape[:2], device=hidden.device)
    states = _project(rules, module, chosen)
    if rules.route_keys is not None:
        return rules.route_keys(index, states, counts)
    summed = (states.float() * counts[..., None, None]).sum(1)
    return _ask_source(rules, index, summed / counts.sum(1).clamp(min=1)[:, None, None], heads)


def _find_ends(rules: RoutingRules, tokens: Tokens, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pooled tokens of each sequence lie in all rows of tokens, (S, 2n), and how often each counts."""
    if "ends" not in rules.memory:
        n = rules.config.router.pooled_tokens
        if tokens.spans is None:
            length = torch.full((len(hidden),), tokens.num_columns, device=hidden.device)
            start = torch.zeros_like(length)
        else:
            start, length = tokens.spans.query_start.long(), tokens.spans.query_length.long()
        if not tokens.is_packed:
            start = start + torch.arange(len(start), device=start.device) * tokens.num_columns
        if rules.prompt_lengths is not None:
            length = rules.prompt_lengths.to(hidden.device)
        elif rules.policy == "first_chunk":
            length = length.clamp(max=rules.first_chunk_tokens)
        places, rank, is_valid = select_ends(start, length, n)
        is_twice = rules.config.router.count_overlap_twice
        rules.memory["ends"] = places, count_ends(rank, is_valid, length, n, count_overlap_twice=is_twice)
    return rules.memory["ends"]


def _mean(rules: RoutingRules, pool: BoundaryPool) -> Tensor:
    return pool.mean(count_overlap_twice=rules.config.router.count_overlap_twice)


def _ask_source(rules: RoutingRules, index: int, pooled: Tensor, heads: int) -> Tensor:
    routes = rules.source(index, pooled)
    return routes if routes.shape[1] == heads else routes.expand(-1, heads).contiguous()


def _limit(rules: RoutingRules, real: Tensor, before: Tensor) -> Tensor:
    """Leave out the tokens that the router must not see: answers, and what follows the first chunk."""
    limit: Tensor | int | None = None
    if rules.prompt_lengths is not None:
        limit = rules.prompt_lengths.to(real.device)[:, None]
    elif rules.policy == "first_chunk":
        limit = rules.first_chunk_tokens
    return real if limit is None else real & (before[:, None] + real.cumsum(1) <= limit)


def _boundary_states(
    rules: RoutingRules, module: Any, hidden: Tensor, real: Tensor, before: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (B, m, G, D) of the pooled tokens, or their mean queries (B, m, 1, D) for layer routers; rank; validity."""
    index, rank, is_valid = select_boundary(real, before, rules.config.router.pooled_tokens)
    chosen = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
    return _project(rules, module, chosen), rank, is_valid


def _project(rules: RoutingRules, module: Any, hidden: Tensor) -> Tensor:
    """Hidden states (B, m, hidden) as the routers want them: keys (B, m, G, D), or mean queries (B, m, 1, D)."""
    if rules.config.granularity == "layer":
        return average_heads(queries_before_rope(module, hidden), dim=2)
    return keys_before_rope(module, hidden)


def _update_pool(rules: RoutingRules, module: Any, hidden: Tensor, tokens: Tokens, layer: ElasticLayer) -> None:
    assert layer.pool is not None
    before = stage(tokens.before, hidden.device)
    real = _limit(rules, tokens.real_mask(len(hidden), hidden.device), before)
    split = tokens.prompt_columns if layer.record_past else tokens.num_columns
    if split:
        layer.pool.update(*_boundary_states(rules, module, hidden[:, :split], real[:, :split], before))
    if split < tokens.num_columns:
        # Candidates of assisted decoding may be taken back, so they are pooled only when they are kept.
        start = before + real[:, :split].sum(1)
        layer.pooled_later.append(_boundary_states(rules, module, hidden[:, split:], real[:, split:], start))
