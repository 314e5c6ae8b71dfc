"""The training loss as a module, for the Trainer of transformers, for accelerate, or for a loop of one's own."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import RecipeError
from .data.batch import PackedBatch
from .data.steps import PackedSteps
from .engine import Engine
from .recipe import Recipe


class RoutedLoss(nn.Module):
    """Routers and multipliers as parameters, and a forward that gives the loss of a pack. The model is no part of it.

    Its loss times the gradient accumulation is made for averages: the mean over the packs of a step, on however many
    processes, is the loss of the step. So packs a process and step, times processes, must be `data.packs.per_step`.

    Args:
        recipe: what learns and how; of its steps, temperatures and rates count, too.
        model: a causal language model on its device. It is frozen, and attached until `close`.
    """

    accepts_loss_kwargs = False  # so that the Trainer divides by its accumulation steps

    def __init__(self, recipe: Recipe, model: Any) -> None:
        super().__init__()
        self.engine = Engine(recipe, model)
        self.routes = nn.ParameterList(self.engine.source.parameters_to_train())
        self.constraint = self.engine.constraint
        self._open = ExitStack()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for one torch optimiser such as AdamW; it descends on routes and ascends on multipliers."""
        optimizers = self.engine.optimizers.values()
        names = ("params", "lr", "betas", "weight_decay", "maximize")
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        return [{name: group[name] for name in names} for group in groups if group["params"]]

    def forward(self, pack: PackedBatch, step: int) -> dict[str, Tensor]:
        """The loss of a pack.

        The routes drawn for it stay in force until the next call, because a backward that computes layers again asks
        for them.

        Args:
            pack: of `stream_packs`.
            step: that it belongs to, from 0: noise, temperature and targets follow it.

        Returns:
            {"loss": to differentiate, "msr": (S,) of its samples}.
        """
        self.close_routes()
        with torch.no_grad():  # the last step may have left their ranges
            self.constraint.clamp()
            self.engine.source.after_step()
        self.engine.schedule(step)
        batch = pack.to(self.engine.device)
        record = self._open.enter_context(self.engine.sampling(batch))
        loss, facts = self.engine.compute_loss(batch, record)
        return {"loss": loss * self.engine.recipe.data.packs.per_step, "msr": facts["msr"].detach()}

    def export(self, folder: str | Path, **facts: Any) -> None:
        """Write what `attach` reads; `facts` about the run are saved with it."""
        self.engine.source.export(Path(folder), facts)

    def close_routes(self) -> None:
        """The routes of the last forward are no longer in force."""
        self._open.close()

    def close(self) -> None:
        """Give the model back as it was."""
        self.close_routes()
        self.engine.close()


class PackStream(IterableDataset[dict[str, Any]]):
    """The packs of all steps in their order, as arguments of `RoutedLoss.forward`; a batch is one pack.

    Args:
        steps: of the run.
        first_step: where to begin, for a loop that goes on; the Trainer of transformers passes over steps by itself.

    Raises:
        RecipeError: on reading, several workers of a loader share it; each of them would read all packs.
    """

    def __init__(self, steps: PackedSteps, *, first_step: int = 0) -> None:
        self.steps, self.first_step = steps, first_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RecipeError(
                f"{worker.num_workers} workers would each read all packs; set dataloader_num_workers (or num_workers) "
                "to 0 or 1."
            )
        for step in range(self.first_step, len(self.steps)):
            for pack in self.steps[step]:
                yield {"pack": pack, "step": step}


def take_pack(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator for batches of one pack.

    Raises:
        ValueError: there are more; packs are batches already.
    """
    if len(items) != 1:
        raise ValueError(f"a batch holds {len(items)} packs; set the batch size to 1 and accumulate the others.")
    return items[0]
