"""Routers in a worker of vLLM: read the adapter, check that it fits, put it on the attention layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...config import BaseModel, ElasticConfig
from ...errors import RouterMismatch, UnsupportedModel
from ...models.checkpoint import load_adapter
from ...models.pretrained import find_pretrained
from ...router import RouterStack
from ...types import HeadRoutes
from ..books import RouteBooks
from ..policy import ServingConfig, check_serving, streaming
from ..report import KEY
from . import layout
from .attention import RoutedImpl
from .probe import probe_prompt
from .queries import QueryPages
from .step import LayerRouting, find_routing, put_routing


class RoutingEngine:
    """The books of a worker, fed from the scheduler's output."""

    def __init__(self, books: RouteBooks, vllm_config: Any, runner: Any) -> None:
        self.books, self._vllm_config, self._runner = books, vllm_config, runner

    def leave_room(self, available: int) -> int:
        """Of so many bytes, those for the KV cache; the mean queries of a layer router take the rest."""
        if self.books.config.granularity == "head":
            return available
        of_cache = 2 * self.books.routes.shape[2]
        return available * of_cache // (of_cache + 1)

    def make_room(self) -> None:
        """Take memory for mean queries, where routers read them, beside the KV cache of each layer."""
        for layer in self._vllm_config.compilation_config.static_forward_context.values():
            routing = find_routing(layer)
            if routing is not None and routing.queries is not None:
                routing.queries.make_room(layer.kv_cache)

    def begin_step(self, output: Any) -> None:
        """Note who joins, leaves and runs in the step of a `SchedulerOutput`."""
        self.books.begin_step(
            new=[
                (data.req_id, len(data.prompt_token_ids or ()), layout.read_extra(data.sampling_params))
                for data in output.scheduled_new_reqs
            ],
            finished=output.finished_req_ids,
            preempted=output.preempted_req_ids or (),
            progress=layout.read_steps(output),
        )
        for data in output.scheduled_new_reqs:
            if self.books.needs_probe(data.req_id):
                budget = self.books.requests[data.req_id].budget
                routes = probe_prompt(self._vllm_config, self._runner, self.books, data.prompt_token_ids, budget)
                self.books.give_routes(data.req_id, routes)

    def end_step(self) -> None:
        """The forward is over."""
        self.books.end_step()

    def count_sparse(self) -> Callable[[], dict[str, int]]:
        """Sparse (layer, KV head) pairs of all ranks, by request, of what was decided since the last call.

        Every rank must call it in every step. What comes back waits for the device when it is called, and no sooner.
        """
        names, counts = self.books.take_decided()
        if not names:
            return dict
        ranks = self._vllm_config.parallel_config.tensor_parallel_size
        if ranks > 1:
            from vllm.distributed import tensor_model_parallel_all_reduce

            # Where there are more ranks than heads, each head was counted by several of them.
            copies = ranks * self.books.routes.shape[2] // self.books.config.base_model.num_kv_heads
            # As floats, exact here: the CPU build's sum knows no integers.
            counts = tensor_model_parallel_all_reduce(counts.float()).int() // copies
        arriving = HeadRoutes(counts)  # a copy to the host is under way

        def read() -> dict[str, int]:
            found = dict(zip(names, arriving.host().tolist(), strict=True))
            self.books.note_counts(found)
            return found

        return read


def describe_base(model_config: Any) -> BaseModel:
    """The shape of the model that vLLM is about to serve."""
    text = model_config.hf_text_config
    return BaseModel(
        name=Path(model_config.model).name,
        revision=model_config.revision,
        model_type=text.model_type,
        num_layers=text.num_hidden_layers,
        num_q_heads=text.num_attention_heads,
        num_kv_heads=model_config.get_total_num_kv_heads(),
        head_dim=model_config.get_head_size(),
    )


def open_adapter(model_config: Any, serving: ServingConfig) -> tuple[ElasticConfig, RouterStack]:
    """The adapter for a model of vLLM.

    Raises:
        AdapterError, RouterMismatch: it is missing, damaged or belongs to another model.
        UnsupportedModel: the model, or the adapter's patterns, cannot be routed by vLLM.
        ValueError: the settings do not fit the adapter.
    """
    if not set(model_config.architectures) & set(layout.ARCHITECTURES):
        raise UnsupportedModel(
            f"{', '.join(model_config.architectures)} is not served with routed heads, "
            f"{', '.join(layout.ARCHITECTURES)} are; `elastic-attn serve --engine transformers` takes more."
        )
    base = describe_base(model_config)
    config, routers = load_adapter(serving.routers or find_pretrained(base))
    names = ("num_layers", "num_q_heads", "num_kv_heads", "head_dim")
    if wrong := [n for n in names if getattr(base, n) != getattr(config.base_model, n)]:
        raise RouterMismatch(
            f"These routers were made for {config.base_model.name or config.base_model.model_type} and do not fit "
            f"{base.name}: "
            + "; ".join(
                f"{n}: routers want {getattr(config.base_model, n)}, the model has {getattr(base, n)}" for n in wrong
            )
            + "."
        )
    streaming(config)
    check_serving(serving, config)
    return config, routers


def attach_engine(worker: Any) -> RoutingEngine:
    """Put routers on the attention layers of a worker that has loaded its model.

    Raises:
        UnsupportedModel: a routed layer runs an attention that knows no routes; names it.
        RouterMismatch, ValueError: as in `open_adapter`.
    """
    from vllm.config import get_layers_from_vllm_config
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.models.utils import extract_layer_index

    vllm_config, runner, device = worker.vllm_config, worker.model_runner, worker.device
    serving = ServingConfig.read(vllm_config.additional_config[KEY])
    config, routers = open_adapter(vllm_config.model_config, serving)
    routers.to(device).requires_grad_(False)
    total, ranks = config.base_model.num_kv_heads, vllm_config.parallel_config.tensor_parallel_size
    local = max(1, total // ranks)
    first = get_tensor_model_parallel_rank() * total // ranks
    books = RouteBooks(
        config,
        serving,
        num_slots=vllm_config.scheduler_config.max_num_seqs,
        device=device,
        heads=slice(first, first + local),
    )
    rotations = layout.find_rotations(runner.get_model())
    for name, layer in get_layers_from_vllm_config(vllm_config, Attention).items():
        index = extract_layer_index(name)
        if index in config.routed_layers and not isinstance(layer.impl, RoutedImpl):
            raise UnsupportedModel(
                f"{name} runs {type(layer.impl).__name__}, which knows no routes; choose no backend."
            )
        if index in config.routed_layers:
            routing = LayerRouting(
                index=index,
                router=routers[index],
                rotation=rotations[name],
                books=books,
                runner=runner,
                queries=QueryPages() if config.granularity == "layer" else None,
            )
            put_routing(layer, routing)
    return RoutingEngine(books, vllm_config, runner)
