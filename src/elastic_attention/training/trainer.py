"""The single-GPU trainer: frozen model, learned routes, constraint on the MSR (Elastic Attention, section 3.3)."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ElasticConfig, to_dict
from ..models.answers import AnswerBatch
from ..models.attach import attach
from ..models.handle import Handle
from ..models.loading import load_model
from ..router import RouteNoise, RouteSampler
from ..sparsity import model_sparsity_ratio
from .batches import StepDataset, stream_steps, weigh_samples
from .checkpoints import load_checkpoint, save_checkpoint
from .log import TrainingLog
from .losses import LOSSES
from .objective import build_constraint
from .recipe import Recipe
from .schedule import learning_rate_at, temperature_at
from .sources import SOURCES, build_source
from .validation import validate

_logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    device: str | None = None,
    max_seconds: float | None = None,
    model: Any = None,
    tokenizer: Any = None,
) -> dict[str, Any]:
    """Run a recipe; continues from the checkpoint in `output` if there is one.

    Args:
        recipe: the run.
        output: folder for `log.jsonl`, `checkpoint.safetensors`, TensorBoard files and, at the end, `adapter/`.
        device: "cpu", "cuda", …; None = the GPU if there is one.
        max_seconds: stop early after a checkpoint; call again to go on.
        model, tokenizer: use these instead of loading `recipe.model`.

    Returns:
        {"steps", "is_finished", "seconds", "tokens", "validation", "adapter"}; validation maps each kind to its
        score, loss and argmax MSR.

    Raises:
        RecipeError, CheckpointError, UnsupportedModel: what is wrong and what to do.
    """
    run = _Run(recipe, Path(output), device, model, tokenizer)
    try:
        return run.execute(max_seconds)
    finally:
        run.handle.detach()


class _Run:
    def __init__(self, recipe: Recipe, output: Path, device: str | None, model: Any, tokenizer: Any) -> None:
        self.recipe, self.output = recipe, output
        if model is None:
            model, tokenizer = load_model(recipe.model, dtype=recipe.precision, device=device)
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.handle = self._attach(model)
        self.source = build_source(recipe, self.handle)
        self.loss_name = recipe.objective.loss or self.source.loss
        self.constraint = build_constraint(recipe, self.source).to(model.device)
        options = recipe.optimizer
        parameters = self.source.parameters_to_train()
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "routes": torch.optim.AdamW(
                parameters,
                lr=options.learning_rate,
                betas=(options.betas[0], options.betas[1]),
                weight_decay=options.weight_decay,
            )
        }
        if multipliers := list(self.constraint.parameters()):
            self.optimizers["multipliers"] = torch.optim.Adam(
                multipliers, lr=options.multiplier_learning_rate, maximize=True
            )

    def _attach(self, model: Any) -> Handle:
        routes = self.recipe.routes
        torch.manual_seed(self.recipe.seed)  # fresh routers are the same on every device
        config = ElasticConfig.for_model(
            model,
            sparse_pattern=self.recipe.pattern,
            full_pattern=self.recipe.full_pattern,
            granularity=SOURCES[routes.source].granularity,
            pooled_tokens=routes.pooled_tokens,
            init_std=routes.init_std,
        )
        return attach(model, config)

    def execute(self, max_seconds: float | None) -> dict[str, Any]:
        start = self._resume()
        data = StepDataset(self.recipe.data, self.tokenizer, seed=self.recipe.seed, steps=self.recipe.steps)
        log, began, tokens, step = TrainingLog(self.output, start), time.monotonic(), 0, start
        try:
            for step, batches in enumerate(_show_progress(stream_steps(data, start), start, self.recipe.steps), start):
                values = self._step(step, batches)
                tokens += sum(b.input_ids.numel() for b in batches)
                done = step + 1
                is_last = done == self.recipe.steps
                is_late = max_seconds is not None and time.monotonic() - began > max_seconds
                every = self.recipe.validate_every
                if every and done % every == 0 and not is_last:
                    values["validation"] = self._validate()
                log.write(done, values)
                if is_last or is_late or (self.recipe.checkpoint_every and done % self.recipe.checkpoint_every == 0):
                    self._save(done)
                if is_late and not is_last:
                    _logger.warning("Stopped after %d of %d steps; run again to go on.", done, self.recipe.steps)
                    break
        finally:
            log.close()
        finished = min(step + 1, self.recipe.steps)
        result: dict[str, Any] = {
            "steps": finished,
            "is_finished": finished == self.recipe.steps,
            "seconds": time.monotonic() - began,
            "tokens": tokens,
        }
        if result["is_finished"]:
            result["validation"] = self._validate()
            facts = {"recipe": to_dict(self.recipe), "validation": result["validation"]}
            self.source.export(self.output / "adapter", facts)
            result["adapter"] = str(self.output / "adapter")
        return result

    def _step(self, step: int, batches: list[AnswerBatch]) -> dict[str, Any]:
        temperature = temperature_at(self.recipe.temperature, step, self.recipe.steps)
        rate = learning_rate_at(self.recipe.optimizer, step, self.recipe.steps)
        for group in self.optimizers["routes"].param_groups:
            group["lr"] = rate
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.constraint.start_step(step / self.recipe.steps)
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for batch, weights in zip(batches, weigh_samples(batches), strict=True):
            self._accumulate(step, batch.to(self.model.device), weights.to(self.model.device), temperature, sums)
        norm = torch.nn.utils.clip_grad_norm_(self.source.parameters_to_train(), self.recipe.optimizer.max_grad_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.constraint.clamp()
        self.source.after_step()
        count, name = sums["count"], f"{self.loss_name}_loss"
        mean = {key: {c: v / count[c] for c, v in sums[key].items()} for key in (name, "msr")}
        return {
            "loss": sums["loss"]["total"],
            name: sum(mean[name].values()) / len(mean[name]),
            f"{name}_by_category": mean[name],
            "msr": mean["msr"],
            **self.constraint.describe(),
            "temperature": temperature,
            "learning_rate": rate,
            "gradient_norm": float(norm),
        }

    def _accumulate(
        self,
        step: int,
        batch: AnswerBatch,
        weights: Tensor,
        temperature: float,
        sums: dict[str, dict[str, float]],
    ) -> None:
        noise = RouteNoise(seed=self.recipe.seed, step=step, sample_ids=batch.sample_ids)
        sample = partial(self.source.sample, sampler=RouteSampler(noise=noise, temperature=temperature))
        with self.handle.routed_by(sample, prompt_lengths=batch.prompt_lengths) as record:
            losses = LOSSES[self.loss_name](self.handle, batch)
        msr = model_sparsity_ratio(record.stack())
        categories = [row.category for row in batch.rows]
        loss = (weights * (losses + self.constraint(msr, categories))).sum()
        loss.backward()
        sums["loss"]["total"] += loss.item()
        for category, one_loss, one_msr in zip(categories, losses.tolist(), msr.tolist(), strict=True):
            sums["count"][category] += 1
            sums[f"{self.loss_name}_loss"][category] += one_loss
            sums["msr"][category] += one_msr

    def _validate(self) -> dict[str, Any]:
        return validate(self.recipe, self.handle, self.source, self.model, self.tokenizer)

    def _save(self, step: int) -> None:
        groups: dict[str, dict[str, Tensor]] = {
            "source": self.source.state(),
            "constraint": self.constraint.state_dict(),
        }
        save_checkpoint(self.output, self.recipe, step, groups, self.optimizers)

    def _resume(self) -> int:
        loaded = load_checkpoint(self.output, self.recipe, self.optimizers)
        if loaded is None:
            return 0
        step, groups = loaded
        self.source.load(groups["source"])
        self.constraint.load_state_dict(groups.get("constraint", {}))  # not every constraint has multipliers
        _logger.info("Going on after step %d of %d.", step, self.recipe.steps)
        return step


def _show_progress(batches: Iterable[list[AnswerBatch]], start: int, total: int) -> Iterable[list[AnswerBatch]]:
    from rich.progress import track

    return track(batches, description="training", total=total - start)
