"""Workers of vLLM that hold routers and the books of their requests."""

from collections.abc import Callable
from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput

from ..report import KEY
from .engine import RoutingEngine, attach_engine


class RoutingWorker:
    """What any worker of vLLM needs for routed heads; stands before the worker's class."""

    _engine: RoutingEngine | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model as ever, then the routers."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._engine = attach_engine(self)

    def determine_available_memory(self) -> int:
        """Bytes for the KV cache: as ever, less what stands beside it."""
        assert self._engine is not None
        return self._engine.leave_room(super().determine_available_memory())  # type: ignore[misc]

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Make the KV cache, and what stands beside it."""
        assert self._engine is not None
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        self._engine.make_room()

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step, with its requests in the books."""
        assert self._engine is not None
        self._engine.begin_step(scheduler_output)
        try:
            output = super().execute_model(scheduler_output)  # type: ignore[misc]
        finally:
            self._engine.end_step()
        return self._tell(output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Tokens of the step, and the routes that were decided in it."""
        return self._tell(super().sample_tokens(grammar_output))  # type: ignore[misc]

    def _tell(self, output: Any) -> Any:
        assert self._engine is not None
        if isinstance(output, AsyncModelRunnerOutput):
            return _ToldLater(output, self._engine.count_sparse())
        if output is not None and getattr(output, "req_ids", None):
            setattr(output, KEY, self._engine.count_sparse()())
        return output


class _ToldLater(AsyncModelRunnerOutput):
    """An output whose tokens, and routes, are still on their way from the device."""

    def __init__(self, output: AsyncModelRunnerOutput, count: Callable[[], dict[str, int]]) -> None:
        self._output, self._count = output, count

    def get_output(self) -> Any:
        """Wait for the device."""
        result = self._output.get_output()
        setattr(result, KEY, self._count())
        return result
