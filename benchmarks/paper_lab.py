"""Where claims are studied: trains what is missing, asks what is missing, and keeps both for all claims."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paper_claims import Claim, Entry, Training
from paper_samples import KeptSuite
from paper_statistics import ROBUST, Seeds, estimate, is_robust, is_sensitive, pick

from elastic_attention import ElasticConfig
from elastic_attention.config import StreamingConfig, XAttentionConfig
from elastic_attention.evaluation.answer_log import AnswerLog
from elastic_attention.evaluation.methods import Method, settle_method
from elastic_attention.evaluation.plan import EvalPlan, Shard, list_batches
from elastic_attention.evaluation.retrieval_heads import rank_retrieval_heads, save_retrieval_mask
from elastic_attention.evaluation.runner import collect_lines, run_plan
from elastic_attention.evaluation.session import Base
from elastic_attention.evaluation.suite_run import hush_transformers
from elastic_attention.records import write_file
from elastic_attention.tasks import KINDS, load_corpora
from elastic_attention.tasks.suite import Suite, open_suite
from elastic_attention.training.checkpoints import fingerprint
from elastic_attention.training.recipe import Interval, Recipe, load_recipe
from elastic_attention.training.trainer import train

LEARNING_RATES = {"static": 0.1, "hard_concrete": 0.1, "alpha": 0.02}
RULER_TASKS = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt", "qa_1")
LEFT_OUT = {"almanac": ("overviews", "module_lines")}  # hundreds of tokens an answer


class TimeUp(Exception):
    """The minutes are used up; what is done is on the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """A model and sizes that suit it.

    Attributes:
        recipe: of its head routers.
        lengths: by suite, in tokens.
        short: most tokens of the samples of short training.
        steps, step_tokens: of every training.
        pooled: tokens at each end where a claim does not say.
        training_rate, reading_rate: tokens a second on one H200, for estimates.
    """

    recipe: str
    lengths: dict[str, tuple[int, ...]]
    short: int
    steps: int
    step_tokens: int
    training_rate: float
    reading_rate: float


SCALES = {
    "smollm2": Scale(
        recipe="smollm2-head-router.toml",
        lengths={"mixture": (2048, 4096, 8000), "ruler": (2048, 4096, 8192), "almanac": (2048, 4096, 8192)},
        short=2048,
        steps=60,
        step_tokens=32_768,
        training_rate=90_000,
        reading_rate=350_000,
    ),
    "qwen2.5-coder": Scale(
        recipe="qwen2.5-coder-head-router.toml",
        lengths={"mixture": (4096, 16_384, 32_000), "ruler": (4096, 16_384, 32_768), "almanac": (4096, 16_384, 32_768)},
        short=8192,
        steps=40,
        step_tokens=65_536,
        training_rate=60_000,
        reading_rate=150_000,
    ),
}


def find_scale(model: str) -> Scale:
    """SmolLM2 by its name; any other model reads as far as Qwen2.5-Coder."""
    return SCALES["smollm2" if model == "smollm2" else "qwen2.5-coder"]


@dataclass(kw_only=True)
class Lab:
    """One model, one output folder, one time limit.

    Attributes:
        recipes: folder of the recipes.
        corpora: folder of `tasks.corpora`; None = the texts in the package.
        deadline: of `time.monotonic()`.
    """

    base: Base
    scale: Scale
    recipes: Path
    output: Path
    corpora: str | None
    samples: int
    deadline: float
    batch_tokens: int = 1
    workers: int = 0
    trainings: list[dict[str, Any]] = field(default_factory=list)
    _suites: dict[str, KeptSuite] = field(default_factory=dict)
    _ranking: Any = None

    def check_time(self, label: str = "") -> None:
        """Raise TimeUp past the deadline."""
        if time.monotonic() >= self.deadline:
            raise TimeUp

    def list_lengths(self, suite: str) -> tuple[int, ...]:
        """Lengths at which a suite is asked: those of the scale that the model can read."""
        return tuple(n for n in self.scale.lengths[suite] if n <= self.base.context)

    def open(self, name: str) -> KeptSuite:
        """A suite that keeps its samples for the next method."""
        if name not in self._suites:
            options: dict[str, Any] = {"corpora": self.corpora} if name == "ruler" and self.corpora else {}
            data = self.corpora if name in ("mixture", "almanac") else None
            self._suites[name] = KeptSuite(open_suite(name, data=data, **options))
        return self._suites[name]

    def plan(self, entry: Entry, seed: int, suite: Suite, found: dict[str, Seeds]) -> EvalPlan:
        """The questions of one entry and seed; trains first what is missing."""
        folder = None if entry.training is None else str(self.train(entry, seed, found))
        method = settle_method(Method(name=entry.method, folder=folder, decode=entry.decode))
        tasks = RULER_TASKS if suite.name == "ruler" else suite.tasks
        return EvalPlan(
            tasks=tuple(task for task in tasks if task not in LEFT_OUT.get(suite.name, ())),
            lengths=self.list_lengths(suite.name),
            samples=self.samples,
            methods=(method,),
            batch_tokens=self.batch_tokens,
        )

    def ask(self, entry: Entry, seed: int, name: str, found: dict[str, Seeds]) -> list[Any]:
        """All answers of an entry and seed; those on the disk are not asked again.

        Raises:
            TimeUp: past the deadline, between two batches.
        """
        suite = self.open(name)
        plan = self.plan(entry, seed, suite, found)
        folder = self.output / "answers" / name / name_answers(entry, plan)
        log, batches = AnswerLog(folder, Shard()) if folder.exists() else None, list(list_batches(plan, suite))
        if log is not None and (lines := collect_lines(plan, batches, log)) is not None:
            return lines
        self.check_time()
        folder.mkdir(parents=True, exist_ok=True)
        with hush_transformers():
            suite.prepare(plan, self.base.tokenizer, self.workers)
            lines = run_plan(
                plan,
                suite,
                self.base.model,
                self.base.tokenizer,
                folder,
                identity={"model": self.base.describe(), "budget": entry.budget},
                budget=entry.budget,
                advance=self.check_time,
            )
        assert lines is not None  # one shard is the whole run
        return lines

    def gather(self, claim: Claim) -> Iterator[dict[str, Seeds]]:
        """The answers by entry, growing entry by entry and seed by seed."""
        found: dict[str, Seeds] = {}
        for entry in claim.entries:
            lists: list[list[Any]] = []
            for seed in range(entry.seeds):
                if not claim.suites and entry.training is not None:
                    self.train(entry, seed, found)
                lists.append([line for name in claim.suites for line in self.ask(entry, seed, name, found)])
                found = found | {entry.name: list(lists)}
                yield found

    def train(self, entry: Entry, seed: int, found: dict[str, Seeds] | None = None) -> Path:
        """The adapter or mask of an entry; trained, unless a run of the same recipe is on the disk.

        Raises:
            TimeUp: past the deadline, after a checkpoint.
        """
        wanted = entry.training
        assert wanted is not None
        target = settle_target(wanted, found or {})
        if wanted.source == "retrieval_heads":
            assert target is not None  # such entries say it
            return self._rank(target)
        recipe = self.build_recipe(dataclasses.replace(wanted, target=target), seed)
        folder = self.output / "trained" / f"{wanted.source}-{wanted.pair}-{fingerprint(recipe, '')}"
        facts = folder / "result.json"
        if not facts.exists():
            self.check_time()
            left = self.deadline - time.monotonic()
            result = train(recipe, folder, max_seconds=left, model=self.base.model, tokenizer=self.base.tokenizer)
            if not result["is_finished"]:
                raise TimeUp
            for path in (*folder.glob("checkpoint*.safetensors"), *folder.glob("tensorboard")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            kept = {key: result[key] for key in ("steps", "seconds", "tokens")}
            write_file(facts, json.dumps(kept | {"seed": seed, "target": target}) + "\n")
        row = {"entry": entry.name, "folder": folder.name} | json.loads(facts.read_text(encoding="utf-8"))
        if row not in self.trainings:
            self.trainings.append(row)
        return folder / "adapter"

    def build_recipe(self, wanted: Training, seed: int) -> Recipe:
        """The recipe of the scale with what a training says otherwise; its targets are numbers."""
        recipe = load_recipe(self.recipes / self.scale.recipe, seed=seed)
        intervals = set_intervals(recipe.intervals, wanted)
        packs = dataclasses.replace(recipe.data.packs, heldout_files=())
        if wanted.is_short and packs.has_files:
            packs = dataclasses.replace(packs, tokens=self.scale.short, over_long="skip")
        if wanted.only and packs.has_files:
            files = tuple(self._keep_categories(file, wanted.only, set(intervals)) for file in packs.files)
            packs = dataclasses.replace(packs, files=files)
        data = dataclasses.replace(
            recipe.data,
            corpora=self.corpora,
            workers=self.workers,
            packs=dataclasses.replace(packs, per_step=max(1, self.scale.step_tokens // packs.tokens)),
        )
        if not packs.has_files:
            if wanted.is_short:
                data = dataclasses.replace(data, lengths=tuple(n for n in data.lengths if n <= self.scale.short))
            if wanted.only:
                data = dataclasses.replace(data, kinds=tuple(k for k, v in KINDS.items() if v.category in intervals))
        routes = dataclasses.replace(
            recipe.routes,
            source=wanted.source,
            pooled_tokens=wanted.pooled or recipe.routes.pooled_tokens,
            hidden_factor=wanted.width or recipe.routes.hidden_factor,
        )
        rate = LEARNING_RATES.get(wanted.source, recipe.optimizer.learning_rate)
        temperature = recipe.temperature
        if wanted.temperature:
            start, end = wanted.temperature
            temperature = dataclasses.replace(temperature, start=start, end=end)
        pairs: dict[str, dict[str, Any]] = {
            "fa_ssa": {},
            "fa_xa": {"pattern": XAttentionConfig()},
            "xa_ssa": {"full_pattern": XAttentionConfig()},
        }
        return dataclasses.replace(
            recipe,
            steps=self.scale.steps,
            intervals=intervals,
            data=data,
            routes=routes,
            optimizer=dataclasses.replace(recipe.optimizer, learning_rate=rate),
            temperature=temperature,
            checkpoint_every=0,
            validate_every=0,
            validation_samples=1,
            **pairs[wanted.pair],
        )

    def _keep_categories(self, file: str, name: str, categories: set[str]) -> str:
        path = self.output / "data" / f"{Path(file).stem}-{name}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with Path(file).open(encoding="utf-8") as stream:
                write_file(path, "".join(x for x in stream if json.loads(x)["category"] in categories))
        return str(path)

    def _rank(self, msr: float) -> Path:
        root = self.output / "trained"
        folder = root / f"retrieval_heads-{msr:.2f}"
        if not folder.exists():
            self.check_time()
            recipe, (model, length) = load_recipe(self.recipes / self.scale.recipe), (self.base.model, 2048)
            pattern = recipe.pattern or ElasticConfig.for_model(model).sparse_pattern
            assert isinstance(pattern, StreamingConfig)  # of the head routers' recipes
            if self._ranking is None:
                corpora = load_corpora(self.corpora)
                self._ranking = rank_retrieval_heads(model, self.base.tokenizer, corpora, samples=32, length=length)
            facts = {"samples": 32, "length": length, "model": self.base.describe()}
            save_retrieval_mask(folder, model, self._ranking, msr=msr, pattern=pattern, facts=facts)
        return folder


def set_intervals(intervals: dict[str, Interval], wanted: Training) -> dict[str, Interval]:
    """The intervals of a training; a target is the middle, with .075 between it and each group of kinds."""
    if isinstance(wanted.target, float) and wanted.source in ("static", "hard_concrete", "alpha"):
        return {c: Interval(low=wanted.target, high=wanted.target) for c in intervals}
    found = dict(intervals)
    for category in intervals:
        is_robust_category = category in ROBUST
        if wanted.only and is_robust_category != (wanted.only == "robust"):
            del found[category]
        elif isinstance(wanted.target, float):
            low, high = (0.05, 0.10) if is_robust_category else (-0.10, -0.05)
            found[category] = Interval(low=min(wanted.target + low, 1.0), high=min(wanted.target + high, 1.0))
        elif wanted.sensitive is not None and not is_robust_category:
            found[category] = Interval(low=wanted.sensitive, high=wanted.sensitive)
    return found


def settle_target(wanted: Training, found: dict[str, Seeds]) -> float | None:
    """The number behind a target; that of an entry is its measured MSR, to two places."""
    if not isinstance(wanted.target, str):
        return wanted.target
    name, _, group = wanted.target.partition("/")
    tests = {"": lambda line: True, "sensitive": is_sensitive, "robust": is_robust}
    msr = estimate(pick(found[name], tests[group]), measure=lambda line: line.msr)
    if msr is None:
        raise ValueError(f"entry {name!r} answered no {group} question, so nothing can be trained at its MSR.")
    return round(msr.value, 2)


def name_answers(entry: Entry, plan: EvalPlan) -> str:
    """Folder of answers: what decides them besides suite and model, in a word."""
    adapter = plan.methods[0].folder
    source = Path(adapter) if adapter else None
    trained = "" if source is None else f"-{source.parent.name if source.name == 'adapter' else source.name}"
    budget = f"-budget{entry.budget:+g}" if entry.budget else ""
    return f"{entry.method}{trained}-{entry.decode}{budget}-{plan.samples}"
