"""The engine of a run on several processes: what each of them computes is added up, and nothing else changes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, RecipeError
from ...models.families import find_attention_modules
from ...models.routing import RouteSource
from ..data.batch import PackedBatch
from ..engine import Engine
from ..recipe import Recipe
from .part import cut_pack
from .ranks import Ranks
from .sharding import find_layers, shard_layers
from .ulysses import SequenceExchange, check_heads, cut_evenly, describe_pack


class ParallelEngine(Engine):
    """`Engine` on several processes. Routers are whole on each of them, and take the same step on each.

    Args:
        recipe: the run; [parallel] says how it is spread.
        model: the same on every process.
        ranks: the processes.

    Raises:
        RecipeError: the heads or layers of the model cannot be shared by `parallel.sequence` processes.
    """

    def __init__(self, recipe: Recipe, model: Any, ranks: Ranks) -> None:
        super().__init__(recipe, model)
        self.ranks = ranks
        self.rank, self.world_size, self.is_main = ranks.data_rank, ranks.data_size, ranks.is_first
        self.sharers, self._next_step = ranks.sequence_size, -1
        try:
            if self.sharers > 1:
                self._check_sequence()
            ranks.copy_from_first([*self.source.parameters_to_train(), *self.constraint.parameters()])
            if ranks.world_size > 1:
                shard_layers(model, self.device.type, recipe.parallel.weights)
        except BaseException:  # nobody else can close what was never there
            self.close()
            raise

    def accumulate(self, batch: PackedBatch) -> None:
        """Add the gradient of a pack, the same for all processes that share it."""
        with self._share(batch) as part:
            super().accumulate(part)

    def run_with(self, source: RouteSource, batch: PackedBatch) -> None:
        """As in `Engine`; processes that share a pack see the same."""
        with self._share(batch) as part:
            super().run_with(source, part)

    def measure(self, batch: PackedBatch) -> dict[str, Tensor]:
        """As in `Engine`; processes that share a pack get the same numbers."""
        with self._share(batch) as part:
            return super().measure(part)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes; what those of a pack hold in common counts once."""
        return self.ranks.sum(values) / self.sharers

    def finish_step(self) -> dict[str, Any]:
        """As in `Engine`.

        Raises:
            LostRank: a process died or hangs; the first process's message names it.
        """
        self.ranks.meet()
        return super().finish_step()

    def reduce_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes, each of which holds a share of the loss of the step."""
        self.ranks.sum_gradients(parameters)

    def check_same(self, identity: str) -> None:
        """Refuse processes that would not run the same.

        Raises:
            RecipeError: names those that differ from the first.
        """
        found = self.ranks.collect(int(identity[:15], 16))
        if others := [rank for rank, number in enumerate(found) if number != found[0]]:
            raise RecipeError(
                f"rank {', '.join(map(str, others))} has another recipe or other data than rank 0; give all nodes the "
                "same files."
            )

    def agree(self, wish: bool) -> bool:
        """Does any process wish it? The same answer on each."""
        return self.ranks.agree(wish)

    def start_step(self, step: int) -> None:
        """As in `Engine`.

        Raises:
            CheckpointError: the processes are at different steps.
        """
        if step != self._next_step and len(set(steps := self.ranks.collect(step))) > 1:
            raise CheckpointError(
                f"The processes would go on at the steps {steps}, by rank; the output folder must be one that all "
                "nodes see."
            )
        self._next_step = step + 1
        super().start_step(step)

    @contextlib.contextmanager
    def _share(self, batch: PackedBatch) -> Iterator[PackedBatch]:
        mesh = self.ranks.mesh
        if mesh is None or self.sharers == 1:
            yield batch
            return
        group, lengths = mesh["sequence"].get_group(), batch.cu_seqlens.diff().tolist()
        counts = cut_evenly(sum(lengths), self.sharers)
        exchange = SequenceExchange(
            group=group,
            rank=self.ranks.sequence_rank,
            counts=counts,
            lengths=batch.cu_seqlens.diff().to(self.device, torch.int32),
        )
        with self.handle.token_reader.given(describe_pack(lengths, exchange)):
            yield cut_pack(batch, exchange.own, group)

    def _check_sequence(self) -> None:
        base = self.handle.config.base_model
        check_heads(base.num_q_heads, base.num_kv_heads, self.sharers)
        others = len(find_layers(self.model)) - len(find_attention_modules(self.model))
        if others:
            raise RecipeError(
                f"parallel.sequence={self.sharers} needs a model whose attention layers are all routed; {others} "
                "layers of this one have a sliding window. Use sequence = 1."
            )
