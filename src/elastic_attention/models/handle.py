"""The handle that `attach` returns: routes, budget, report, save, detach."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cache import ElasticCache
from ..config import ElasticConfig, StreamingConfig, XAttentionConfig
from ..kernels.backends import choose_backend, is_fused
from ..paging import LayerGroup, PagedCache
from ..patterns import StreamingPattern, build_pattern
from ..router import RouterStack
from ..types import ForwardRecord
from . import checkpoint
from .attention_function import IMPLEMENTATION
from .cache_layer import ElasticLayer, Store, claim_layer
from .calibration import calibrate_budget
from .families import find_attention_modules, unwrap_model
from .fused_routers import FusedRouters
from .generation import Prompt, wrap_generate
from .report import RouteReport
from .routing import KeyRouter, LayerStep, RouteSource, RoutingRules, plan_layer
from .tokens import TokenReader, Tokens

_logger = logging.getLogger(__name__)
_MARK = "_elastic_handle"


class Handle:
    """Routed attention on a model that is itself unchanged. Made by `attach`.

    Attributes:
        config: sizes, patterns and training facts.
        routers: one router a routed layer, outside the model's module tree.
        routed_layers: indices of the layers that are routed.
        budget: added to every sparse logit; larger = sparser. 0 is what training found.
    """

    def __init__(
        self,
        model: Any,
        config: ElasticConfig,
        routers: RouterStack,
        *,
        decode: str,
        prefill_policy: str,
        first_chunk_tokens: int,
        backend: str,
        reroute_on_append: bool,
    ) -> None:
        self.model = unwrap_model(model)
        self.config, self.routers = config, routers
        self.routed_layers = config.routed_layers
        self.budget = 0.0
        self.decode, self.prefill_policy, self.first_chunk_tokens = decode, prefill_policy, first_chunk_tokens
        self.reroute_on_append = reroute_on_append
        self._backend = choose_backend(backend)
        self._pattern = build_pattern(config.sparse_pattern)
        # What XAttention may want next is not known, so its heads keep every key and answers read them all.
        self._keeps_all = decode == "full" or isinstance(config.sparse_pattern, XAttentionConfig)
        self._report = self._new_report()
        self._element_bytes = 0
        self._forced: Tensor | None = None
        self._source: RouteSource | None = None
        self._record: ForwardRecord | None = None
        self._prompt_lengths: Tensor | None = None
        self.prompt: Prompt | None = None
        self._fused = FusedRouters(routers)
        self._tokens = TokenReader()
        self._is_enabled = True
        self._install()

    # Installing and removing -----------------------------------------------------------------------------------

    def _install(self) -> None:
        self._base_implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation(IMPLEMENTATION)
        body = self.model.base_model
        self._hooks = [
            body.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            body.register_forward_hook(self._after_forward),
        ]
        for module in find_attention_modules(self.model).values():
            self._hooks.append(module.register_forward_pre_hook(self._before_attention, with_kwargs=True))
        wrap_generate(self)
        setattr(self.model, _MARK, self)

    def detach(self) -> None:
        """Restore the model bit for bit. Calling it again does nothing."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        del self.model.generate
        delattr(self.model, _MARK)
        self.model.set_attn_implementation(self._base_implementation)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the base model, exactly."""
        before = self._is_enabled
        self._is_enabled = False
        self.model.set_attn_implementation(self._base_implementation)
        try:
            yield
        finally:
            self._is_enabled = before
            self.model.set_attn_implementation(IMPLEMENTATION if before and self._hooks else self._base_implementation)

    # Routes ----------------------------------------------------------------------------------------------------

    def set_routes(self, routes: None | str | Tensor) -> None:
        """Give the routes of the next sequences instead of letting the router decide.

        Args:
            routes: "full", "sparse", None (the router decides), or a bool tensor (L, G) or (B, L, G), True = sparse.
                L counts all layers of the model; entries of layers that are not routed are ignored. A live cache
                keeps its routes.

        Raises:
            ValueError: another word, shape or dtype.
        """
        base = self.config.base_model
        shape = (base.num_layers, base.num_kv_heads)
        if isinstance(routes, str):
            if routes not in ("full", "sparse"):
                raise ValueError(f"set_routes({routes!r}): use 'full', 'sparse', None or a bool tensor {shape}.")
            routes = torch.full(shape, routes == "sparse")
        if routes is not None:
            if not isinstance(routes, Tensor) or routes.dtype != torch.bool or routes.ndim not in (2, 3):
                raise ValueError(f"set_routes needs a bool tensor (L, G) or (B, L, G) with (L, G) = {shape}.")
            if tuple(routes.shape[-2:]) != shape or 0 in routes.shape:
                raise ValueError(f"set_routes got shape {tuple(routes.shape)}; (L, G) must be {shape}.")
            is_routed = torch.zeros(base.num_layers, 1, dtype=torch.bool)
            is_routed[list(self.routed_layers)] = True
            routes = routes.cpu() & is_routed
        self._forced = routes

    @contextlib.contextmanager
    def routed_by(
        self, source: RouteSource, *, is_sampling: bool = True, prompt_lengths: Tensor | None = None
    ) -> Iterator[ForwardRecord]:
        """Inside, `source` decides instead of the routers; for training and for probing.

        Args:
            source: (layer index, pooled keys (B, G, D)) -> routes (B, G), float with gradient or bool.
            is_sampling: routes are float and both paths run (`blended_attention`); needs use_cache=False.
            prompt_lengths: (B,) int; the router pools only these first real tokens of each row.

        Yields:
            ForwardRecord that holds the routes of the forward inside.
        """
        saved = self._source, self._record, self._prompt_lengths, self._is_sampling
        record = ForwardRecord()
        self._source, self._record, self._prompt_lengths = source, record, prompt_lengths
        self._is_sampling = is_sampling
        try:
            yield record
        finally:
            self._source, self._record, self._prompt_lengths, self._is_sampling = saved

    _is_sampling = False

    def decide(self, index: int, pooled: Tensor) -> Tensor:
        """Routes that the router of layer `index` takes for pooled keys (B, G, D): (B, G) bool."""
        router = self.routers[index]
        if next(router.parameters()).device != pooled.device:
            router.to(pooled.device)
        with torch.no_grad():
            return router(pooled, layer=index, budget=self.budget)

    def calibrate(self, prompts: Sequence[Any], target: float = 0.7, tolerance: float = 0.01) -> dict[str, float]:
        """Search the budget whose mean MSR over sample prompts is `target`, and set it.

        Args:
            prompts: token id lists or (1, T) tensors, each long enough to be routed.
            target: wanted mean model sparsity ratio in [0, 1].
            tolerance: stop when this close.

        Returns:
            {"budget", "msr", "tolerance"}: what was set and what it measured.
        """
        return calibrate_budget(self, prompts, target, tolerance)

    def report(self) -> dict[str, Any]:
        """Facts about the last generate, or the last forward outside of one.

        Returns:
            One list entry per row the model saw: prompt_tokens; routed; msr, esr_prefill, esr_decode (ratios, None
            without such rows); kv_bytes, kv_bytes_dense, kv_bytes_allocated (cache now, bytes); kv_bytes_read (bytes
            that generated rows read). And routes, a bool tensor (B, L, G), True = sparse.
        """
        return self._report.summarize()

    @contextlib.contextmanager
    def without_books(self) -> Iterator[None]:
        """Inside, forwards do not enter the report."""
        kept, self._report = self._report, self._new_report()
        try:
            yield
        finally:
            self._report = kept

    def note_decoded(self, cache: Any, num_tokens: int) -> None:
        """Enter decode steps into the report that a captured graph ran, `num_tokens` a row."""
        for index in self.routed_layers:
            layer = cache.layers[index]
            tokens = Tokens.decoded([n - num_tokens for n in layer.store.lengths], num_tokens)
            routes = layer.store.routes
            step = LayerStep(tokens=tokens, layer=layer, now=routes, after=routes, is_decided=layer.is_decided)
            self._report.add(index, step)
        self._report.close_forward(self._element_bytes)

    # Saving ----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `elastic_config.json` and `elastic_routers.safetensors`; complete files or none."""
        checkpoint.save_adapter(folder, self.config, self.routers)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload the adapter with a model card; returns the commit's address."""
        return checkpoint.push_adapter(repo_id, self.config, self.routers, private=private)

    # Hooks -----------------------------------------------------------------------------------------------------

    def restart_report(self) -> None:
        """Begin new books; `generate` calls it once, a forward outside of it each time."""
        self._report = self._new_report()

    def _new_report(self) -> RouteReport:
        return RouteReport(self._pattern, self.config.base_model.num_layers, keeps_all=self._keeps_all)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tokens.forget()
        if self._is_enabled and self.prompt is None:
            self.restart_report()

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._is_enabled:
            self._report.close_forward(self._element_bytes)

    def _before_attention(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._is_enabled:
            return None
        index = int(module.layer_idx)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask {tuple(mask.shape)} is no padding mask; pass (B, S) ones and zeros.")
        layer = None if cache is None else claim_layer(cache, index, self._make_layer)
        if layer is not None and self.prompt is not None:
            layer.record_past = self.prompt.is_assisted
        tokens = self._tokens.read(
            mask,
            batch=hidden.shape[0],
            num_columns=hidden.shape[1],
            past_columns=layer.columns if layer else 0,
            before=list(layer.store.lengths) if layer and layer.columns else [0] * hidden.shape[0],
            prompt_end=self.prompt.num_columns if self.prompt else None,
        )
        step = plan_layer(self._rules(), index, module, hidden, tokens, layer)
        self._element_bytes = 2 * int(module.head_dim) * hidden.element_size()
        self._note(index, step)
        extra = {
            "elastic": step,
            "backend": self._backend,
            "pattern": self.config.sparse_pattern,
            "full_pattern": self.config.full_pattern,
            "keeps_all": self._keeps_all,
        }
        return args, kwargs | extra

    def _note(self, index: int, step: LayerStep) -> None:
        self._report.add(index, step)
        # Gradient checkpointing runs layers again during backward, after the record was closed.
        if self._record is not None:
            self._record.routes[index] = step.now.values

    def _rules(self) -> RoutingRules:
        prompt_routes = self.prompt.routes if self.prompt is not None else None
        return RoutingRules(
            config=self.config,
            source=self._source or self.decide,
            route_keys=self._find_router_kernel(),
            forced=None if self._source else (prompt_routes if prompt_routes is not None else self._forced),
            is_sampling=self._is_sampling,
            prompt_lengths=self._prompt_lengths,
            policy=self.prefill_policy,
            first_chunk_tokens=self.first_chunk_tokens,
            reroute_on_append=self.reroute_on_append,
        )

    def _find_router_kernel(self) -> KeyRouter | None:
        has_kernel = self._source is None and self._is_paged() and self.config.granularity == "head"
        return functools.partial(self._fused.route, budget=self.budget) if has_kernel else None

    def _make_layer(self, group: LayerGroup) -> ElasticLayer:
        pattern, keeps_all = self._pattern, self._keeps_all
        if not isinstance(pattern, StreamingPattern):  # nothing is dropped, so any rule for dropping will do
            pattern = StreamingPattern(StreamingConfig())
        is_paged = self._is_paged()

        def make_store(group: LayerGroup) -> Store:
            if is_paged:
                return PagedCache(pattern, keeps_all=keeps_all, group=group)
            return ElasticCache(pattern, keeps_all=keeps_all)

        return ElasticLayer(make_store, group, num_pooled=self.config.router.pooled_tokens)

    def _is_paged(self) -> bool:
        return self.model.device.type == "cuda" and is_fused(self.backend)

    @property
    def backend(self) -> str:
        """The backend that runs on the model's present device."""
        base = self.config.base_model
        return choose_backend(
            self._backend,
            self.model.device,
            self.model.dtype,
            base.head_dim,
            block_size=self.config.sparse_pattern.block_size,
        )

    @property
    def has_given_routes(self) -> bool:
        """Are the routes given (`set_routes`) rather than decided by the router?"""
        return self._forced is not None


def find_handle(model: Any) -> Handle | None:
    """The handle of an attached model, also of a deep copy of one; None if there is none."""
    return getattr(unwrap_model(model), _MARK, None)
