"""The handle that `attach` returns: routes, budget, report, save, detach."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ElasticConfig, XAttentionConfig
from ..kernels.backends import choose_backend, is_fused
from ..paging import LayerGroup
from ..patterns import build_pattern
from ..router import RouterStack
from ..types import ForwardRecord
from . import checkpoint
from .budget import check_budget
from .cache_layer import ElasticLayer, claim_layer
from .calibration import calibrate_budget
from .families import unwrap_model
from .fused_routers import FusedRouters
from .generation import Prompt, Turns
from .given_routes import check_given
from .installation import MARK, Installation
from .report import RouteReport
from .routing import KeyRouter, LayerStep, RouteSource, RoutingRules, plan_layer
from .stores import make_layer
from .tokens import TokenReader


class Handle:
    """Routed attention on a model that is itself unchanged. Made by `attach`.

    Attributes:
        config: sizes, patterns and training facts.
        routers: one router a routed layer, outside the model's module tree.
        routed_layers: indices of the layers that are routed.
        token_reader: what layers learn about the tokens of a forward.
        fast_gradients: of `blended_attention`.
        turns: threads that call `generate` take them; forwards outside of it belong to one thread.
        replays_steps: `generate` decodes with a CUDA graph where the cache lies in pages.
    """

    fast_gradients = False
    replays_steps = True
    _is_sampling = False

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
        static: Tensor | None = None,
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
        self._static = None if static is None else check_given(static, config)
        self._forced = self._static
        self._source: RouteSource | None = None
        self._record: ForwardRecord | None = None
        self._prompt_lengths: Tensor | None = None
        self.prompt: Prompt | None = None
        self.turns = Turns()
        self._fused = FusedRouters(routers)
        self.token_reader = TokenReader()
        self._is_enabled = True
        self._installation = Installation(self, self._before_forward, self._after_forward, self._before_attention)

    def __repr__(self) -> str:
        by, layers = "a mask" if self.is_static else f"{self.config.granularity} routers", len(self.routed_layers)
        return f"<Handle of {type(self.model).__name__}: {layers} layers routed by {by}, decode={self.decode!r}>"

    def detach(self) -> None:
        """Restore the model bit for bit. Calling it again does nothing; methods that steer the model are refused."""
        self._installation.remove()

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the base model, exactly. ElasticAttentionError: the handle was detached."""
        self._installation.require("disabled")
        before = self._is_enabled
        self._is_enabled = False
        self._installation.switch(is_routed=False)
        try:
            yield
        finally:
            self._is_enabled = before
            self._installation.switch(is_routed=before)

    # Routes ----------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> float:
        """Added to every sparse logit; larger = sparser. 0 is what training found. ValueError: no finite number."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        """Take a number, or raise ValueError: a value of another type, NaN, infinity, more than one number."""
        self._budget = check_budget(value)

    def set_routes(self, routes: None | str | Tensor) -> None:
        """Give the routes of the next sequences instead of letting the router decide.

        Args:
            routes: "full", "sparse", None (what was attached decides), or a bool tensor (L, G) or (B, L, G), True =
                sparse. L counts all layers of the model; entries of layers that are not routed are ignored. A live
                cache keeps its routes.

        Raises:
            ValueError: another word, shape or dtype, or heads of a layer that differ under a layer adapter.
            ElasticAttentionError: the handle was detached.
        """
        self._installation.require("set_routes")
        self._forced = self._static if routes is None else check_given(routes, self.config)

    @contextlib.contextmanager
    def routed_by(
        self, source: RouteSource | None, *, is_sampling: bool = True, prompt_lengths: Tensor | None = None
    ) -> Iterator[ForwardRecord]:
        """Inside, `source` decides instead of the routers; for training and for probing.

        Args:
            source: (layer index, pooled keys (B, G, D)) -> routes (B, G), float with gradient or bool; None leaves the
                decision where it is.
            is_sampling: routes are float and both paths run (`blended_attention`); needs use_cache=False. A backward
                that computes layers again (activation checkpointing) has to run inside as well.
            prompt_lengths: (B,) int; the router pools only these first real tokens of each sequence. B counts the
                sequences, packed ones too: those of one row whose position_ids start again.

        Yields:
            ForwardRecord that holds the routes of the forward inside.

        Raises:
            ElasticAttentionError: the handle was detached.
        """
        self._installation.require("routed_by")
        saved = self._source, self._record, self._prompt_lengths, self._is_sampling
        record = ForwardRecord()
        self._source, self._record, self._prompt_lengths = source, record, prompt_lengths
        self._is_sampling = is_sampling
        try:
            yield record
        finally:
            self._source, self._record, self._prompt_lengths, self._is_sampling = saved

    def decide(self, index: int, pooled: Tensor) -> Tensor:
        """Routes that the router of layer `index` takes: (B, G) bool for pooled keys (B, G, D).

        A layer adapter takes one decision for all heads: (B, 1) bool for the mean pooled query (B, 1, D).
        """
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

        Raises:
            ValueError: the target is no ratio, a prompt is no token ids or too short, or the routes are given.
            ElasticAttentionError: the handle was detached.
        """
        self._installation.require("calibrate")
        return calibrate_budget(self, prompts, target, tolerance)

    def report(self) -> dict[str, Any]:
        """Facts about the last generate, or the last forward outside of one.

        Returns:
            One list entry per row the model saw: prompt_tokens; routed; msr, esr_prefill, esr_decode (ratios in [0, 1],
            None without such rows); kv_bytes, kv_bytes_dense, kv_bytes_allocated (cache now, bytes); kv_bytes_read
            (bytes that generated rows read). And routes, a bool tensor (B, L, G), True = sparse.
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
        layers = {index: cache.layers[index] for index in self.routed_layers}
        self._report.add_decoded(layers, num_tokens, self._element_bytes)

    # Saving ----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `attach` reads, routers or the mask, whole or not at all. AdapterError: `folder` is a file."""
        if self._static is None:
            checkpoint.save_adapter(folder, self.config, self.routers)
        else:
            checkpoint.save_static_routes(folder, self._static, {}, self.config.training)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload the adapter with a model card; returns the commit's address."""
        return checkpoint.push_adapter(repo_id, self.config, self.save_pretrained, private=private)

    # Hooks -----------------------------------------------------------------------------------------------------

    def restart_report(self) -> None:
        """Begin new books; `generate` calls it once, a forward outside of it each time."""
        self._report = self._new_report()

    def _new_report(self) -> RouteReport:
        return RouteReport(self._pattern, self.config.base_model.num_layers, keeps_all=self._keeps_all)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.token_reader.forget()
        if self._is_enabled:
            self._installation.require_attention()
            if self.prompt is None:
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
        tokens = self.token_reader.read(
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
            "fast_gradients": self.fast_gradients,
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
            memory=self.token_reader.memory,
        )

    def _find_router_kernel(self) -> KeyRouter | None:
        has_kernel = self._source is None and self._is_paged() and self.config.granularity == "head"
        return functools.partial(self._fused.route, budget=self.budget) if has_kernel else None

    def _make_layer(self, group: LayerGroup) -> ElasticLayer:
        return make_layer(
            group,
            self._pattern,
            keeps_all=self._keeps_all,
            is_paged=self._is_paged(),
            num_pooled=self.config.router.pooled_tokens,
        )

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
    def is_static(self) -> bool:
        """Was a mask for all inputs attached, in place of routers?"""
        return self._static is not None

    @property
    def has_given_routes(self) -> bool:
        """Are the routes given (`set_routes`) rather than decided by the router?"""
        return self._forced is not None


def find_handle(model: Any) -> Handle | None:
    """The handle of an attached model, also of a deep copy of one; None if there is none."""
    return getattr(unwrap_model(model), MARK, None)
