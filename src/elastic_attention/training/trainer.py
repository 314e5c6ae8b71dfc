"""The trainer: packs in, routes out (Elastic Attention, section 3.3). It keeps steps and files; `Engine` computes.

A run is a function of its recipe and its data. The step number is the whole state of data, noise and schedules, so a
checkpoint holds parameters, multipliers and moments, and nothing else.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, RecipeError, TrainingDiverged
from ..settings import to_dict
from .checkpoints import load_checkpoint, save_checkpoint
from .checks import announce_samples, check_fit, check_output, check_tokenizer, open_model
from .data.batch import PackedBatch
from .data.steps import PackedSteps, read_heldout, stream_steps
from .engine import Engine
from .fitted_inputs import fit_inputs
from .holding import hold_output
from .identity import identify_run
from .log import TrainingLog
from .progress import show_steps
from .recipe import Recipe
from .stopping import StopRequest
from .validation import validate

_logger = logging.getLogger(__name__)
ADAPTER, ADAPTER_SO_FAR = "adapter", "adapter-so-far"


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    device: str | None = None,
    max_seconds: float | None = None,
    model: Any = None,
    tokenizer: Any = None,
    build_engine: Callable[[Recipe, Any], Engine] = Engine,
) -> dict[str, Any]:
    """Run a recipe; continues from the checkpoint in `output` if there is one.

    Ctrl-C, SIGTERM, a file `stop` in `output` or `max_seconds` end the run after the step under way, with a checkpoint.

    Args:
        recipe: the run.
        output: folder for `log.jsonl`, checkpoints, TensorBoard files and, at the end, `adapter/`; a run that is
            stopped leaves `adapter-so-far/`.
        device: "cpu", "cuda", …; None = the GPU if there is one.
        max_seconds: stop early after a checkpoint, so long after the call, loading and tokenising included; one step
            is taken all the same. Call again to go on.
        model, tokenizer: use these instead of loading `recipe.model`.
        build_engine: (recipe, model) -> what computes; all ranks of a sharded one call `train` alike.

    Returns:
        {"steps", "is_finished", "seconds", "tokens", "skipped_steps", "data", "validation", "adapter"}: `skipped_steps`
        had a loss or gradient that is no number; `data` is what `Corpus.report` says, `validation` what `validate`
        says, None without held-out files or before the end of the run.

    Raises:
        RecipeError, DataError, CheckpointError, UnsupportedModel, TrainingDiverged: what is wrong and what to do.
    """
    began = time.monotonic()
    check_output(Path(output))
    if model is None:
        model, tokenizer = open_model(recipe, device)
    engine = build_engine(recipe, model)
    try:
        run = _Run(recipe, Path(output), engine, tokenizer)
        with hold_output(Path(output)) if engine.is_main else contextlib.nullcontext():
            return run.execute(None if max_seconds is None else max_seconds - (time.monotonic() - began))
    finally:
        engine.close()


class _Run:
    def __init__(self, recipe: Recipe, output: Path, engine: Engine, tokenizer: Any) -> None:
        self.recipe, self.output, self.engine, self.tokenizer = recipe, output, engine, tokenizer
        self.data = PackedSteps(
            recipe.data,
            tokenizer,
            seed=recipe.seed,
            steps=recipe.steps,
            categories=recipe.intervals,
            rank=engine.rank,
            world_size=engine.world_size,
        )
        check_fit(engine.model, self.data)
        check_tokenizer(engine, tokenizer, self.data.corpus)
        self.identity = identify_run(recipe, self.data.corpus.identity)
        self.heldout = self._read_heldout()  # now, so that what is wrong with it is said before the first step
        engine.check_same(self.identity.digest)
        engine.name_sample = self.data.corpus.where
        if engine.is_main:
            announce_samples(recipe, self.data.corpus, self.heldout, engine.handle.config.sparse_pattern)

    def execute(self, max_seconds: float | None) -> dict[str, Any]:
        start, began, tokens = self._resume(), time.monotonic(), 0
        done, total = start, self.recipe.steps
        log = TrainingLog(self.output, start) if self.engine.is_main else None
        bar = show_steps(start, total, is_shown=self.engine.is_main)
        with StopRequest(self.output, max_seconds) as request, bar as advance:
            try:
                for step, packs in enumerate(stream_steps(self.data, start), start):
                    values = self._step(step, packs)
                    tokens += sum(len(pack.input_ids) for pack in packs)
                    done = step + 1
                    advance(done, values)
                    if self._is_due(self.recipe.validate_every, done):
                        values["validation"] = self._validate()
                    reason = request.reason if done < total else None
                    is_stopped = self.engine.agree(reason is not None)
                    if log is not None:
                        log.write(done, values)
                        if done == total or is_stopped or self._is_due(self.recipe.checkpoint_every, done):
                            log.sync()
                            self._save(done)
                    if is_stopped:
                        why = reason or "another process was asked to stop"
                        _logger.warning("Stopped after %d of %d steps: %s. Run it again to go on.", done, total, why)
                        break
            except TrainingDiverged:  # its step was not taken, so nothing is lost
                if log is not None:
                    log.sync()
                    self._save(done)
                raise
            finally:
                if log is not None:
                    log.close()
            if self.engine.is_main:
                request.obey()
        return self._finish(done, self.engine.count(tokens), time.monotonic() - began)

    def _step(self, step: int, packs: list[PackedBatch]) -> dict[str, Any]:
        self.engine.start_step(step)
        for pack in packs:
            try:
                self.engine.accumulate(pack.to(self.engine.device))
            except torch.OutOfMemoryError as error:
                raise RecipeError(
                    f"Step {step + 1}: {self.engine.device} has no room for a pack of {len(pack.input_ids):,} tokens. "
                    "Set recompute_layers = true, lower data.packs.tokens, or use more devices."
                ) from error
        return self.engine.finish_step()

    def _finish(self, done: int, tokens: int, seconds: float) -> dict[str, Any]:
        is_finished = done == self.recipe.steps
        folder = self.output / (ADAPTER if is_finished else ADAPTER_SO_FAR)
        validation = self._validate() if is_finished else None
        if self.engine.is_main:
            facts = {"recipe": to_dict(self.recipe), "steps": done, "validation": validation}
            self.engine.source.export(folder, facts)
            if is_finished:
                shutil.rmtree(self.output / ADAPTER_SO_FAR, ignore_errors=True)
        return {
            "steps": done,
            "is_finished": is_finished,
            "seconds": seconds,
            "tokens": tokens,
            "skipped_steps": self.engine.skipped,
            "data": self.data.corpus.report(),
            "validation": validation,
            "adapter": str(folder),
        }

    def _is_due(self, every: int, done: int) -> bool:
        return bool(every) and done % every == 0 and done < self.recipe.steps

    def _read_heldout(self) -> list[PackedBatch]:
        recipe = self.recipe
        if not recipe.data.packs.has_heldout:
            return []
        return list(read_heldout(recipe.data, self.tokenizer, seed=recipe.seed, per_task=recipe.validation_samples))

    def _validate(self) -> dict[str, Any] | None:
        return validate(self.engine, self.heldout) if self.heldout else None

    def _save(self, step: int) -> None:
        save_checkpoint(self.output, self.identity, step, self.engine.state(), self.engine.optimizers)

    def _resume(self) -> int:
        checkpoint = load_checkpoint(self.output, self.identity)
        if checkpoint is None:
            fit_inputs(self.engine, self.data)
            return 0
        if misfit := checkpoint.explain_misfit(self.engine.state()):
            raise CheckpointError(
                f"The checkpoint in {self.output} is of another model than {self.recipe.model}: {misfit}. Choose "
                "another output folder, or remove it."
            )
        self.engine.load(checkpoint.state)
        checkpoint.restore(self.engine.optimizers)
        _logger.info("Going on after step %d of %d.", checkpoint.step, self.recipe.steps)
        return checkpoint.step
