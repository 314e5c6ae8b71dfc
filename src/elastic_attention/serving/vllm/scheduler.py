"""Schedulers of vLLM that keep routed requests apart in the prefix cache and tell them about their routes."""

import hashlib
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from ..policy import NEVER, RoutePlan, ServingConfig, plan_routes
from ..report import KEY, report_request
from ..requests import RouteRequest, read_route_request
from .engine import open_adapter
from .layout import read_extra


class RoutingScheduler:
    """What any scheduler of vLLM needs for routed heads; stands before the scheduler's class.

    Keys of generated tokens depend on routes, so their blocks are never shared. Keys of a prompt depend on nothing but
    the prompt where it is computed densely ("deferred"); on what was asked for where routes are given or decided from
    the first chunk, which becomes part of the blocks' hash; and on its end under "probe", which shares nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vllm_config: Any = self.vllm_config  # type: ignore[attr-defined]
        self._serving = ServingConfig.read(vllm_config.additional_config[KEY])
        self._config, _ = open_adapter(vllm_config.model_config, self._serving)
        self._element_bytes = vllm_config.model_config.dtype.itemsize
        self._plans: dict[str, RoutePlan] = {}
        self._num_sparse: dict[str, int] = {}
        coordinator = self.kv_cache_manager.coordinator  # type: ignore[attr-defined]
        cache_blocks = coordinator.cache_blocks

        def cache_prompt_blocks(request: Any, num_computed_tokens: int) -> None:
            cache_blocks(request, min(num_computed_tokens, self._count_shared(request)))

        coordinator.cache_blocks = cache_prompt_blocks

    def _count_shared(self, request: Any) -> int:
        """Tokens of a request whose blocks others may read."""
        plan = self._plans[request.request_id]
        if plan.sparse_from == NEVER:
            return NEVER
        return 0 if self._is_probed(plan) else request.num_prompt_tokens

    def _is_probed(self, plan: RoutePlan) -> bool:
        return self._serving.policy == "probe" and plan.sparse_from == 0

    def add_request(self, request: Any) -> None:
        """Take a request in; its options were checked before."""
        if request.request_id not in self._plans:
            asked = read_route_request(read_extra(request.sampling_params), self._config, budget=self._serving.budget)
            plan = plan_routes(asked, self._serving, self._config, request.num_prompt_tokens)
            self._plans[request.request_id] = plan
            if asked.routes is None and self._is_probed(plan):
                request.skip_reading_prefix_cache = True
            elif salt := self._find_salt(asked, plan):
                request.cache_salt = f"{request.cache_salt or ''}{salt}"
                request.block_hashes.clear()
                request.update_block_hashes()
        super().add_request(request)  # type: ignore[misc]

    def _find_salt(self, asked: RouteRequest, plan: RoutePlan) -> str | None:
        if asked.routes is not None and not asked.is_dense:
            return f"{KEY}:{hashlib.sha256(asked.routes.numpy().tobytes()).hexdigest()}"
        is_sparse_prompt = self._serving.policy == "first_chunk" and plan.decide_at is not None
        return f"{KEY}:{asked.budget!r}" if is_sparse_prompt else None

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As ever, after noting which routes were decided."""
        for name, num_sparse in getattr(model_runner_output, KEY, {}).items():
            if name in self._plans:
                self._num_sparse[name] = num_sparse
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _connector_finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """Facts about the routes go where the facts of a transfer go: `kv_transfer_params` of the response."""
        delay, facts = super()._connector_finished(request)  # type: ignore[misc]
        plan = self._plans.pop(request.request_id)
        report = report_request(
            self._config,
            plan,
            prompt_tokens=request.num_prompt_tokens,
            new_tokens=request.num_output_tokens,
            num_sparse=self._num_sparse.pop(request.request_id, None),
            element_bytes=self._element_bytes,
        )
        return delay, (facts or {}) | {KEY: report}


class ElasticScheduler(RoutingScheduler, Scheduler):
    """vLLM's scheduler, with routed heads."""


class ElasticAsyncScheduler(RoutingScheduler, AsyncScheduler):
    """vLLM's asynchronous scheduler, with routed heads."""
