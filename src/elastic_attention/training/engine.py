"""What computes a run: the frozen model, what learns on it, and the optimisers.

The trainer sees packs, steps and files; the engine sees one pack at a time. `Engine` runs on one device. A sharded
engine is a subclass: the loss of a step is the sum of what its ranks accumulate, since the weights of the samples refer
to the packs of all ranks.

Shape letters: N tokens of a pack, S samples, L routed layers, G KV heads, D hidden width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import ElasticConfig
from ..errors import TrainingDiverged, UnsupportedModel
from ..models.attach import attach
from ..models.families import describe_model, unwrap_model
from ..models.fused_layers import fuse_layers
from ..models.output_layer import find_output_layer
from ..models.recompute import recompute_layers
from ..models.routing import RouteSource
from ..router import RouteNoise, RouteSampler
from ..sparsity import model_sparsity_ratio
from ..types import ForwardRecord
from .cross_entropy import score_tokens
from .data.batch import PackedBatch
from .losses import LOSSES
from .objective import build_constraint
from .recipe import Recipe
from .schedule import learning_rate_at, noise_scale_at, temperature_at
from .sources import SOURCES, build_source
from .tally import Tally

_MAX_SKIPPED = 3  # steps in a row
_MAX_NAMED = 5  # samples in a message
_SUMS = ("loss", "msr", "penalty", "objective")


class Engine:
    """Forward, backward and step of packs on one device.

    Args:
        recipe: the run.
        model: a causal language model on its device, or a PeftModel around one; it is frozen, and attached until
            `close`.

    Attributes:
        rank, world_size: of the ranks that read different packs.
        sharers: ranks that hold parts of the same packs, and each the whole penalty.
        is_main: writes the files of the run.
        skipped: steps left out so far, because their loss or gradient was no number.
        name_sample: from the identity of a sample to words for messages.
        handle, source, constraint, optimizers: what the recipe asks for.

    Raises:
        UnsupportedModel: the model cannot be routed, or its parameters have several dtypes.
    """

    rank, world_size = 0, 1
    sharers = 1
    is_main = True
    name_sample: Callable[[int], str] = str

    def __init__(self, recipe: Recipe, model: Any) -> None:
        check_dtypes(model)
        torch.manual_seed(recipe.seed)  # fresh routers are the same on every device
        self.handle = attach(model, configure(recipe, model))  # first: a model that is refused stays as it was
        self._was_training, self._learnt = model.training, [p for p in model.parameters() if p.requires_grad]
        self.recipe, self.model = recipe, unwrap_model(model).eval().requires_grad_(False)
        self.handle.fast_gradients = recipe.fast_gradients
        self.source = build_source(recipe, self.handle)
        self.loss_name = recipe.objective.loss or self.source.loss
        self.constraint = build_constraint(recipe, self.source).to(model.device)
        parameters = self.source.parameters_to_train(), list(self.constraint.parameters())
        self.optimizers = build_optimizers(recipe, *parameters)
        self._output: tuple[Tensor, float] | None = None
        self.skipped = self._skipped_in_a_row = 0
        try:
            if recipe.fuse_layers:  # first, for it refuses all models that the other does, and changes nothing then
                fuse_layers(model, True)
            if recipe.recompute_layers:
                recompute_layers(model, True, keeps_attention=recipe.keep_attention, num_whole=recipe.whole_layers)
        except BaseException:  # nobody can close what was never there
            self._give_back()
            raise

    @property
    def device(self) -> torch.device:
        """Where packs go."""
        return self.model.device

    # The model ---------------------------------------------------------------------------------------------------

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Final hidden states of a pack under the routes in force, (N, D)."""
        places = {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None]}
        return self.model.base_model(**places, use_cache=False).last_hidden_state[0]

    def output_layer(self) -> tuple[Tensor, float]:
        """The weight (V, D) that turns hidden states into logits, and the factor of the logits."""
        if self._output is None:
            with self.handle.disabled():
                self._output = find_output_layer(self.model)
        return self._output

    @torch.no_grad()
    def measure_text(self, tokens: Tensor) -> Tensor:
        """Losses of the base model on tokens (n,) as plain text, of each but the first; nothing is compiled for it."""
        with self.handle.disabled(), torch.compiler.set_stance("force_eager"):
            hidden = self.model.base_model(input_ids=tokens[None].to(self.device), use_cache=False).last_hidden_state[0]
        weight, scale = self.output_layer()
        return score_tokens(hidden[:-1] * scale, weight, tokens[1:].to(self.device))[0]

    @contextmanager
    def all_full(self) -> Iterator[None]:
        """Inside, every head of every sequence is full."""
        heads = self.handle.config.base_model.num_kv_heads
        with self.handle.routed_by(lambda index, pooled: torch.zeros(len(pooled), heads).bool(), is_sampling=False):
            yield

    # A step ------------------------------------------------------------------------------------------------------

    def schedule(self, step: int) -> None:
        """Set what is a function of the step, which counts from 0."""
        recipe = self.recipe
        self.step, self.temperature = step, temperature_at(recipe.temperature, step, recipe.steps)
        self.noise_scale = noise_scale_at(recipe.temperature, step, recipe.steps)
        self.learning_rate = learning_rate_at(recipe.optimizer, step, recipe.steps)
        for group in self.optimizers["routes"].param_groups:
            group["lr"] = self.learning_rate
        self.constraint.start_step(step / recipe.steps)

    def start_step(self, step: int) -> None:
        """Set what is a function of the step, which counts from 0, and forget the gradients of the last one."""
        self.schedule(step)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.tally = Tally(sorted(self.recipe.intervals), _SUMS, self.device)
        self._doubtful: list[tuple[Tensor, Tensor]] = []  # of each pack, its samples and their losses

    def sampling(self, batch: PackedBatch) -> AbstractContextManager[ForwardRecord]:
        """Inside, the routes of a pack are drawn for this step. Forward and backward belong inside."""
        layers = self.handle.config.base_model.num_layers
        noise = RouteNoise(seed=self.recipe.seed, step=self.step, sample_ids=batch.sample_ids, num_layers=layers)
        sampler = RouteSampler(noise=noise, temperature=self.temperature, noise_scale=self.noise_scale)
        sample = partial(self.source.sample, sampler=sampler)
        return self.handle.routed_by(sample, prompt_lengths=batch.prompt_lengths)

    def compute_loss(self, batch: PackedBatch, record: ForwardRecord) -> tuple[Tensor, dict[str, Tensor]]:
        """What a pack adds to the loss of the step (Elastic Attention, Eq. 8), inside of `sampling`.

        Returns:
            The scalar to differentiate; and by sample, (S,) each: "loss", "msr", "penalty", "objective", the last two
            times the weight of the sample, so that their sums are those of the step.
        """
        token_losses = LOSSES[self.loss_name](self, batch)
        msr = model_sparsity_ratio(record.stack())
        penalty = batch.weights * self.constraint(msr, batch.categories)
        losses = batch.average_samples(token_losses.detach())
        facts = {"loss": losses, "msr": msr, "penalty": penalty, "objective": batch.weights * losses + penalty}
        return (token_losses * batch.token_weights()).sum() + penalty.sum() / self.sharers, facts

    def accumulate(self, batch: PackedBatch) -> None:
        """Add the gradient of a pack of this step; `batch` is on the engine's device."""
        with self.sampling(batch) as record:
            loss, facts = self.compute_loss(batch, record)
            loss.backward()
        self.tally.add(batch.categories, **facts)
        self._doubtful.append((batch.sample_ids, facts["objective"].detach()))

    def finish_step(self) -> dict[str, Any]:
        """Take the step; returns what the log says about it.

        Raises:
            TrainingDiverged: the loss or the gradient is no number and the recipe says stop, or skipping did not help.
        """
        parameters = self.source.parameters_to_train()
        self.tally.table = self.total(self.tally.table)
        self.reduce_gradients([*parameters, *self.constraint.parameters()])
        described = self.constraint.describe()  # as they were while the step was computed
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.recipe.optimizer.max_grad_norm))
        loss, penalty = self.tally.total("objective"), self.tally.total("penalty")
        is_sound = math.isfinite(loss) and math.isfinite(norm)
        if is_sound:
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.constraint.clamp()
            self.source.after_step()
            self._skipped_in_a_row = 0
        elif self.recipe.on_nan == "stop" or self._skipped_in_a_row + 1 == _MAX_SKIPPED:
            raise TrainingDiverged(
                f"Step {self.step + 1}: {self._explain(loss, norm)}. The parameters are those of the step before. "
                "Lower optimizer.learning_rate, remove the samples, or set on_nan = 'skip'."
            )
        else:
            self.skipped, self._skipped_in_a_row = self.skipped + 1, self._skipped_in_a_row + 1
        means = self.tally.means()
        return {
            "loss": loss,
            f"{self.loss_name}_loss": sum(means["loss"].values()) / len(means["loss"]),
            f"{self.loss_name}_loss_by_category": means["loss"],
            "regularization": penalty,
            "msr": means["msr"],
            **described,
            "temperature": self.temperature,
            "noise_scale": self.noise_scale,
            "learning_rate": self.learning_rate,
            "gradient_norm": norm,
            **({} if is_sound else {"skipped": {"count": self.skipped, "reason": self._explain(loss, norm)}}),
        }

    def _explain(self, loss: float, norm: float) -> str:
        bad = [int(i) for ids, losses in self._doubtful for i in ids[~torch.isfinite(losses)].tolist()]
        named = [self.name_sample(i) for i in bad[:_MAX_NAMED]]
        named += [f"{len(bad) - len(named)} more"] if len(bad) > len(named) else []
        samples = f"; no number is the loss of {', '.join(named)}" if bad else ""
        return f"loss {loss}, gradient norm {norm}{samples}"

    # Held-out samples --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run_with(self, source: RouteSource, batch: PackedBatch) -> None:
        """A forward of a pack under the routes of `source`, for what `source` sees."""
        with self.handle.routed_by(source, is_sampling=False, prompt_lengths=batch.prompt_lengths):
            self.hidden_states(batch)

    @torch.no_grad()
    def measure(self, batch: PackedBatch) -> dict[str, Tensor]:
        """A pack as inference routes it: "loss", "accuracy" (of tokens), "exact" (1 = all right), "msr", each (S,)."""
        decides = self.source.inference()
        mask, source = (decides, None) if isinstance(decides, Tensor) else (None, decides)
        self.handle.set_routes(mask)
        with self.handle.routed_by(source, is_sampling=False, prompt_lengths=batch.prompt_lengths) as record:
            hidden = self.hidden_states(batch)
        self.handle.set_routes(None)
        weight, scale = self.output_layer()
        losses, is_right = score_tokens(hidden * scale, weight, batch.targets)
        accuracy = batch.average_samples(is_right.float())
        msr = model_sparsity_ratio(record.stack()).to(self.device)
        return {
            "loss": batch.average_samples(losses),
            "accuracy": accuracy,
            "exact": (accuracy == 1).float(),
            "msr": msr,
        }

    # Ranks and files ---------------------------------------------------------------------------------------------

    def total(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the ranks, the same on each."""
        return values

    def count(self, number: int) -> int:
        """Sum of a number over the ranks."""
        return int(self.total(torch.tensor(number, dtype=torch.float64, device=self.device)))

    def agree(self, wish: bool) -> bool:
        """Does any rank wish it? The same answer on each."""
        return wish

    def check_same(self, identity: str) -> None:
        """Refuse ranks that would not run the same; `identity` is the `fingerprint` of this one's run."""

    def reduce_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients of `parameters` over the ranks."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a step changes, by group, for a checkpoint; the optimisers are kept beside it."""
        return {
            "source": self.source.state(),
            "constraint": dict(self.constraint.state_dict()),
            "skipped": {"steps": torch.tensor([self.skipped, self._skipped_in_a_row])},
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore `state()`."""
        self.source.load(state["source"])
        self.constraint.load_state_dict(state.get("constraint", {}))  # not every constraint has multipliers
        if "skipped" in state:
            self.skipped, self._skipped_in_a_row = state["skipped"]["steps"].tolist()

    def close(self) -> None:
        """Give the model back as it was."""
        if self.recipe.recompute_layers:
            recompute_layers(self.model, False)
        if self.recipe.fuse_layers:
            fuse_layers(self.model, False)
        self._give_back()

    def _give_back(self) -> None:
        self.handle.detach()
        self.model.train(self._was_training)
        for parameter in self._learnt:
            parameter.requires_grad_(True)


def configure(recipe: Recipe, model: Any) -> ElasticConfig:
    """The configuration that a recipe attaches a model with."""
    routes, sizes = recipe.routes, {}
    if routes.hidden_factor is not None:
        head_dim = describe_model(model)[0].head_dim
        sizes = {name: routes.hidden_factor * head_dim for name in ("task_hidden", "router_hidden")}
    return ElasticConfig.for_model(
        model,
        sparse_pattern=recipe.pattern,
        full_pattern=recipe.full_pattern,
        granularity=SOURCES[routes.source].granularity,
        pooled_tokens=routes.pooled_tokens,
        init_std=routes.init_std,
        **sizes,
    )


def build_optimizers(
    recipe: Recipe, routes: list[torch.nn.Parameter], multipliers: list[torch.nn.Parameter]
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for what decides routes, Adam without decay that ascends for the multipliers, where there are any."""
    options = recipe.optimizer
    matrices = [p for p in routes if p.ndim > 1 and SOURCES[recipe.routes.source].has_decay]
    found: dict[str, torch.optim.Optimizer] = {
        "routes": torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": options.weight_decay},
                {"params": [p for p in routes if all(p is not m for m in matrices)], "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
            betas=(options.betas[0], options.betas[1]),
        )
    }
    if multipliers:
        found["multipliers"] = torch.optim.Adam(multipliers, lr=options.multiplier_learning_rate, maximize=True)
    return found


def check_dtypes(model: Any) -> None:
    """Refuse a model whose float parameters have several dtypes.

    Raises:
        UnsupportedModel: names a parameter of each dtype.
    """
    found = {p.dtype: name for name, p in model.named_parameters() if p.is_floating_point()}
    if len(found) > 1:
        which = ", ".join(f"{name} is {dtype}" for dtype, name in found.items())
        raise UnsupportedModel(f"The model mixes dtypes: {which}. Load it with one, such as the recipe's precision.")
